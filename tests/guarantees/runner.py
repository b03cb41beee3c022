"""Makes a change in a copy of the package, and runs tests against it."""

import enum
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .model import Break
from .report import FILE

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = ROOT / "src" / "apalis_pgmq"

_TEST_LIMIT: Final = 120
"""Seconds that each test may take."""
_STALL: Final = 240.0
"""Seconds without any news after which a run is ended: a test's clean-up has no time limit."""
_GRACE: Final = 20.0
"""Seconds that a run may take to clean up after itself when it is ended early."""
_FAILED: Final = 1  # pytest's exit code for failed tests, and for nothing else


class State(enum.Enum):
    """What became of a test."""

    PASSED = "passes"
    FAILED = "fails"
    LATE = "runs into its time limit"
    SKIPPED = "is skipped"
    BROKEN = "cannot be run"


@dataclass
class Run:
    """What a run of pytest told.

    Attributes:
        code: its exit code; None if it was ended since it took too long.
        package: the directory of the package that was tested.
        states: by node id, as pytest writes them.
    """

    code: int | None = None
    package: Path | None = None
    states: dict[str, State] = field(default_factory=dict)

    def of(self, test: str) -> State:
        """Return what became of a test of the list: its worst case, if it has several."""
        full = f"tests/{test}"
        found = [
            state
            for node, state in self.states.items()
            if node == full or node.startswith((f"{full}[", f"{full}::"))
        ]
        if not found and self.code is None:
            return State.LATE
        worst_first = (State.FAILED, State.LATE, State.BROKEN, State.SKIPPED, State.PASSED)
        return next((state for state in worst_first if state in found), State.BROKEN)


@contextmanager
def copied(change: Break | None) -> Iterator[Path]:
    """Have a copy of the package, with the change if there is one; yield the directory to import it from."""
    with tempfile.TemporaryDirectory(prefix="guarantees-") as directory:
        copy = Path(directory) / PACKAGE.name
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if change is not None:
            path = copy / change.file
            path.write_text(changed(path.read_text(encoding="utf-8"), change), encoding="utf-8")
        yield Path(directory).resolve()


def changed(text: str, change: Break) -> str:
    """Return a file's text with the change.

    Raises:
        ValueError: what is to be replaced is not there exactly once.
    """
    if (count := text.count(change.old)) != 1:
        raise ValueError(f"{change.name}: {change.old!r} occurs {count} times in {change.file}")
    return text.replace(change.old, change.new)


def run(tests: Collection[str], change: Break | None = None) -> Run:
    """Run tests against a copy of the package.

    Raises:
        RuntimeError: it is not the copy that was tested.
    """
    with copied(change) as directory, tempfile.TemporaryDirectory(prefix="guarantees-") as scratch:
        report = Path(scratch) / "report"
        report.touch()
        path = os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            FILE: str(report),
            # What it finds here must not be tried again elsewhere.
            "HYPOTHESIS_STORAGE_DIRECTORY": str(Path(scratch) / "hypothesis"),
        }
        result = _read(report, _pytest(tests, environment))
        if result.package is not None and result.package != directory / PACKAGE.name:
            raise RuntimeError(f"{result.package} was tested, not the copy in {directory}")
        return result


def _pytest(tests: Collection[str], environment: dict[str, str]) -> int | None:
    arguments = ("-q", "-p", "no:cacheprovider", "-p", "tests.guarantees.report", f"--timeout={_TEST_LIMIT}")
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments, *(f"tests/{test}" for test in tests)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code = _wait(process, Path(environment[FILE]))
        finally:
            _end(process)
        if code not in {0, _FAILED, None}:
            output.seek(0)
            sys.stderr.write(output.read().decode(errors="replace"))
    return code


def _wait(process: "subprocess.Popen[bytes]", report: Path) -> int | None:
    """Return the exit code once there is one; None if nothing more happens."""
    while time.time() - report.stat().st_mtime < _STALL:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(1)
    return None


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Leave nothing behind of a run: neither itself nor what its tests have started."""
    if process.poll() is None:
        # It ends its servers and workers by itself, if it gets the time.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(report: Path, code: int | None) -> Run:
    result = Run(code)
    for text in report.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if "package" in line:
            result.package = Path(line["package"])
        elif line["phase"] == "call" or line["outcome"] != "passed":
            state = _state(line)
            # What goes wrong when it is torn down does not make a failure of something else.
            if result.states.get(line["test"], State.PASSED) is State.PASSED:
                result.states[line["test"]] = state
    return result


def _state(line: dict[str, str]) -> State:
    if line["late"]:
        return State.LATE
    if line["outcome"] == "failed":
        return State.FAILED if line["phase"] == "call" else State.BROKEN
    return State(line["outcome"].replace("passed", "passes").replace("skipped", "is skipped"))


def notices(change: Break, result: Run) -> list[str]:
    """Return why a change went unnoticed, one line per test; empty if all tests noticed."""
    noticed = {State.FAILED, State.LATE} if change.hangs else {State.FAILED}
    states = {test: result.of(test) for test in change.tests}
    found = [f"{test} {state.value}" for test, state in states.items() if state not in noticed]
    if result.code not in ({_FAILED, None} if change.hangs else {_FAILED}):
        found.append(f"pytest ended with {result.code}")
    return found
