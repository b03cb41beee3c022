"""The typed API, as a type checker sees it.

Each file in ``cases`` is checked by strict mypy. A comment ``# E: code`` marks an error that is expected
on its line, ``# R: type`` the type that its ``reveal_type`` shows; nothing else may be reported.
"""

import os
import re
from pathlib import Path

import pytest

import apalis_pgmq

pytest.importorskip("mypy")

from mypy import api

CASES = Path(__file__).parent / "cases"
SOURCE = Path(apalis_pgmq.__file__).parents[1]

EXPECTED = re.compile(r"# (?P<kind>[ER]): (?P<text>.+?)(?=  #|$)")
ERROR = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]$")
REVEALED = re.compile(r'^(?P<file>[^:]+):(?P<line>\d+): note: Revealed type is "(?P<type>.+)"$')
QUALIFIER = re.compile(r"\b(?:[A-Za-z_]\w*\.)+")

Report = set[tuple[int, str]]


def expected(path: Path) -> Report:
    found = set()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        for match in EXPECTED.finditer(line):
            found.add((number, f"{match['kind']}: {match['text']}"))
    return found


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """What mypy says of each case, all checked in one run."""
    configuration = tmp_path_factory.mktemp("mypy") / "mypy.ini"
    configuration.write_text("[mypy]\nstrict = True\nwarn_unreachable = True\n")
    before = os.environ.get("MYPYPATH")
    os.environ["MYPYPATH"] = str(SOURCE)
    try:
        output, errors, _ = api.run(
            [
                f"--config-file={configuration}",
                f"--cache-dir={configuration.parent / 'cache'}",
                "--no-error-summary",
                "--no-pretty",
                "--hide-error-context",
                *sorted(map(str, CASES.glob("*.py"))),
            ]
        )
    finally:
        if before is None:
            del os.environ["MYPYPATH"]
        else:
            os.environ["MYPYPATH"] = before
    assert not errors, errors
    reports: dict[str, Report] = {path.name: set() for path in CASES.glob("*.py")}
    for line in output.splitlines():
        if match := ERROR.match(line):
            reports[Path(match["file"]).name].add((int(match["line"]), f"E: {match['code']}"))
        elif match := REVEALED.match(line):
            reports[Path(match["file"]).name].add(
                (int(match["line"]), f"R: {QUALIFIER.sub('', match['type'])}")
            )
        else:
            assert ": note: " in line, line
    return reports


@pytest.mark.parametrize("case", sorted(CASES.glob("*.py")), ids=lambda path: path.stem)
def test_mypy_reports_exactly_what_is_marked(case: Path, reported: dict[str, Report]) -> None:
    assert sorted(reported[case.name]) == sorted(expected(case))


def test_there_are_cases() -> None:
    assert all(expected(case) for case in CASES.glob("*.py"))
