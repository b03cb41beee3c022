"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from . import machine
from .bench import Bench, Options, Scenario
from .peering import PEERS
from .report import markdown
from .results import Outcome, Report
from .scenarios import SCENARIOS
from .server import open_server

if TYPE_CHECKING:
    from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    one = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    one.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help="what to measure; everything by default"
    )
    one.add_argument("--list", action="store_true", help="say what there is to measure, and stop")
    one.add_argument("--rounds", type=int, help="how often to measure everything (5; 1 if --quick)")
    one.add_argument("--quick", action="store_true", help="tiny numbers, to see that everything works")
    one.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="ours and the limits'")
    one.add_argument("--peers", default="all", help="none, all (the default) or names, separated by commas")
    one.add_argument("--venvs", type=Path, default=Path(".benchmarks"), help="where peers are installed")
    one.add_argument(
        "--hold", type=float, help="seconds that `snapshot` holds its snapshot (60; 6 if --quick)"
    )
    one.add_argument(
        "--url", help="measure on that server, as a superuser, instead of one of the harness's own"
    )
    one.add_argument("--json", type=Path, help="write all that was measured there")
    one.add_argument("--markdown", type=Path, help="write the tables there instead of showing them")
    one.add_argument("--plot", type=Path, help="draw a plot there (SVG or PNG; needs matplotlib)")
    return one


def chosen_scenarios(names: Sequence[str]) -> list[Scenario]:
    """Return the scenarios of these names, in the order in which they are run; all if there are none.

    Raises:
        SystemExit: there is no such scenario.
    """
    if unknown := set(names) - set(SCENARIOS):
        raise SystemExit(f"there is no scenario {', '.join(sorted(unknown))}: see --list")
    return [scenario for name, scenario in SCENARIOS.items() if not names or name in names]


def chosen_options(arguments: argparse.Namespace) -> Options:
    """Return the options of a call.

    Raises:
        SystemExit: they make no sense.
    """
    names = {"none": [], "all": list(PEERS)}.get(arguments.peers, arguments.peers.split(","))
    if unknown := set(names) - set(PEERS):
        raise SystemExit(f"there is no peer {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    if rounds < 1:
        raise SystemExit("--rounds must be at least 1")
    return Options(
        rounds=rounds,
        quick=arguments.quick,
        loop=arguments.loop,
        peers=tuple(names),
        venvs=arguments.venvs.absolute(),
        hold=arguments.hold or (6.0 if arguments.quick else 60.0),
    )


async def measure(scenario: Scenario, bench: Bench) -> Outcome:
    """Run one scenario; what it fails with becomes part of the results."""
    sys.stderr.write(f"{scenario.name}: {scenario.title}\n")
    bench.samples = []
    began = time.monotonic()
    rows, error = [], ""
    try:
        rows = await scenario.run(bench)
    except Exception as failure:  # noqa: BLE001 - the others are still to be measured
        traceback.print_exception(failure)
        error = f"{type(failure).__name__}: {failure}"
    return Outcome(
        scenario=scenario.name,
        title=scenario.title,
        rows=rows,
        samples=bench.samples,
        seconds=time.monotonic() - began,
        error=error,
    )


async def run(scenarios: list[Scenario], options: Options, arguments: argparse.Namespace) -> Report:
    """Measure; what was measured so far is written after each scenario."""
    _stop_on_terminate()
    outcomes: list[Outcome] = []
    shown = {**asdict(options), "venvs": options.venvs.name}
    async with open_server(arguments.url) as server:
        facts = {**machine.facts(), **await server.facts()}
        bench = Bench(server, options)
        report = Report(machine=facts, options=shown, outcomes=outcomes)
        for scenario in scenarios:
            outcomes.append(await measure(scenario, bench))
            if arguments.json:
                text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
                arguments.json.write_text(text + "\n", encoding="utf-8")
    return report


def _stop_on_terminate() -> None:
    """Have SIGTERM end the run as Ctrl-C does: processes and databases are cleared away first."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code: 1 if a scenario failed."""
    arguments = parser().parse_args(argv)
    if arguments.list:
        for scenario in SCENARIOS.values():
            sys.stdout.write(f"{scenario.name:14}  {scenario.title}\n")
        sys.stdout.write(f"\npeers: {', '.join(PEERS)}\n")
        return 0
    if arguments.plot:
        from . import plot  # noqa: PLC0415 - matplotlib is optional; better to miss it now than in the end
    scenarios, options = chosen_scenarios(arguments.scenarios), chosen_options(arguments)
    try:
        report = asyncio.run(run(scenarios, options, arguments))
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    if arguments.markdown:
        arguments.markdown.write_text(markdown(report), encoding="utf-8")
    else:
        sys.stdout.write(markdown(report))
    if arguments.plot:
        plot.draw(report, arguments.plot)
    return 1 if any(outcome.error for outcome in report.outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
