"""What a scenario is given: a server, the options of the run, and rounds to measure in."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path
    from typing import TypeAlias

    from .results import Row
    from .server import Server

    Sample: TypeAlias = dict[str, Any]
    Measure: TypeAlias = Callable[[], Awaitable[Sample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the harness was called.

    Attributes:
        rounds: how often everything is measured.
        quick: tiny numbers, to see that everything works.
        loop: the event loop of `apalis_pgmq` and of the limits that it is held against.
        peers: whom to measure besides.
        venvs: where their virtual environments are, or are to be made.
        hold: for how many seconds the snapshot is held.
    """

    rounds: int
    quick: bool
    loop: str
    peers: tuple[str, ...]
    venvs: Path
    hold: float


@dataclass(slots=True)
class Bench:
    """A run, as a scenario sees it.

    Attributes:
        server: the server to measure on.
        options: of the run.
        samples: all that the scenario measured so far.
        drained: the drain rounds of `apalis_pgmq`, once they were measured; others use them too.
    """

    server: Server
    options: Options
    samples: list[Sample] = field(default_factory=list)
    drained: list[Sample] = field(default_factory=list)

    def size(self, full: float, quick: float) -> int:
        """Return one of two numbers, depending on how the harness was called."""
        return int(quick if self.options.quick else full)

    async def rounds(
        self, systems: Mapping[str, Measure], *, rounds: int | None = None
    ) -> dict[str, list[Sample]]:
        """Measure systems in turns, in every second round from the last to the first.

        Returns:
            The samples of each system, one for each round.
        """
        found: dict[str, list[Sample]] = {name: [] for name in systems}
        for number in range(self.options.rounds if rounds is None else rounds):
            order = list(systems) if number % 2 == 0 else list(systems)[::-1]
            for name in order:
                self.say(f"round {number + 1}: {name}")
                sample = await systems[name]()
                self.note(name, sample, round=number + 1)
                found[name].append(sample)
        return found

    def note(self, system: str, sample: Sample, **more: object) -> None:
        """Keep a sample as it came."""
        self.samples.append({"system": system, **more, **sample})

    @staticmethod
    def say(text: str) -> None:
        """Tell whoever watches how far it is."""
        sys.stderr.write(f"  {text}\n")
        sys.stderr.flush()


@dataclass(frozen=True, slots=True)
class Scenario:
    """Something to measure.

    Attributes:
        name: for the command line.
        title: what it measures.
        run: measures it.
    """

    name: str
    title: str
    run: Callable[[Bench], Awaitable[list[Row]]]
