"""The one error of the embedded server."""

from __future__ import annotations

from apalis_pgmq.core import ApalisError


class EmbeddedPostgresError(ApalisError):
    """The embedded server cannot do what was asked; the text says why and what to do about it."""
