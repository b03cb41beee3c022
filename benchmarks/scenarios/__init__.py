"""The scenarios, by name."""

from __future__ import annotations

from typing import Final

from benchmarks.bench import Scenario

from . import drain

SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario("drain", "No-op messages through one worker process", drain.drain),
        Scenario("drain2", "No-op messages through two worker processes", drain.drain2),
        Scenario("cost", "What a message costs the worker and the server", drain.cost),
    )
}
"""In the order in which they are run."""
