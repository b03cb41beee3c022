"""A PostgreSQL server without a container or an installation: ``pip install 'apalis-pgmq[embedded]'``."""

from ._errors import EmbeddedPostgresError
from ._process import StopMode
from ._server import EmbeddedServer, embedded_postgres

__all__ = ["EmbeddedPostgresError", "EmbeddedServer", "StopMode", "embedded_postgres"]
