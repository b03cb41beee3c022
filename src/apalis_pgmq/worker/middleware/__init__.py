"""Middleware: plain callables around the handler, one module each."""

from ._base import Middleware, Next, wrap
from ._timeout import Timeout

__all__ = ["Middleware", "Next", "Timeout", "wrap"]
