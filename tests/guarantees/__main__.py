"""``python -m tests.guarantees [name ...]``: do the tests notice when a promise is broken?

Makes each change of the list, or each that is named, in a copy of the package, and runs its tests: first
without the change, where they must pass, then with it, where each must fail. Names may be patterns.
"""

import argparse
import fnmatch
import signal
import sys
import time
from collections.abc import Sequence

from .breaks import BREAKS
from .model import Break
from .runner import State, notices, run


def chosen(names: Sequence[str], *, quick: bool) -> list[Break]:
    """Return the changes that are asked for; all if none is."""
    for name in names:
        if not any(fnmatch.fnmatch(one.name, name) for one in BREAKS):
            raise SystemExit(
                f"no change is called {name!r}; there are: {', '.join(one.name for one in BREAKS)}"
            )
    return [
        one
        for one in BREAKS
        if not (quick and one.slow) and (not names or any(fnmatch.fnmatch(one.name, name) for name in names))
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Return how many changes went unnoticed, as an exit code: 0 or 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.guarantees", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name")
    parser.add_argument("--quick", action="store_true", help="leave out what is marked as slow")
    options = parser.parse_args(arguments)
    breaks = chosen(options.names, quick=options.quick)

    tests = list(dict.fromkeys(test for one in breaks for test in one.tests))
    _say(f"{len(tests)} tests without a change, then {len(breaks)} changes")
    unchanged = run(tests)
    unnoticed = 0
    for one in breaks:
        started = time.monotonic()
        before = {test: unchanged.of(test) for test in one.tests}
        why = [
            f"{test} {state.value} unchanged" for test, state in before.items() if state is not State.PASSED
        ]
        why = why or notices(one, run(one.tests, one))
        unnoticed += bool(why)
        verdict = f"NOT NOTICED: {'; '.join(why)}" if why else "noticed"
        _say(f"{one.name}: {verdict} ({time.monotonic() - started:.0f} s)")
    _say(f"{len(breaks)} changes, {unnoticed} unnoticed")
    return 1 if unnoticed else 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _terminated(*_: object) -> None:
    # Otherwise what it has started would outlive it.
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    raise SystemExit(main())
