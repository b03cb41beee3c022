"""A ticker that finds out for how long an event loop stood still."""

from __future__ import annotations

import asyncio
import time
from typing import Final

TICK: Final = 0.005
"""Seconds between two ticks."""


async def tick(gaps: list[float]) -> None:
    """Note by how many seconds each tick came late, until cancelled."""
    due = time.monotonic() + TICK
    while True:
        await asyncio.sleep(TICK)
        now = time.monotonic()
        gaps.append(now - due)
        due = now + TICK
