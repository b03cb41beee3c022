"""What a middleware is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from apalis_pgmq.core import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

Next: TypeAlias = Callable[[Task[Any]], Awaitable[object]]
"""Goes on with a task: to the next middleware, in the end to the handler; returns its result."""

Middleware: TypeAlias = Callable[[Task[Any], Next], Awaitable[object]]
"""``async def middleware(task, call_next)``: may look, wait, refuse (by raising) or replace the result.

The worker settles the message once, after the outermost middleware returned or raised: a middleware
that calls ``call_next`` twice runs the handler twice, but nothing is acked between.
"""


def wrap(handler: Next, middleware: Sequence[Middleware]) -> Next:
    """Return the handler with the middleware around it, the first one outermost."""
    for layer in reversed(middleware):
        handler = _around(layer, handler)
    return handler


def _around(layer: Middleware, inner: Next) -> Next:
    return lambda task: layer(task, inner)
