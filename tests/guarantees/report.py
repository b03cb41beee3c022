"""A pytest plugin for the runner: writes down which package is tested, and what became of each test.

One JSON object per line, to the file that the environment variable `FILE` names.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import apalis_pgmq

FILE: Final = "GUARANTEES_REPORT"

_failed: set[str] = set()


def pytest_configure() -> None:
    _write({"package": str(Path(apalis_pgmq.__file__).parent)})


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out the other parameters of a test that has failed: what fails often takes long."""
    if _without_parameters(item) in _failed:
        pytest.skip("has failed already")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield
    error = call.excinfo.value if call.excinfo is not None else None
    if report.when == "call" and report.failed:
        _failed.add(_without_parameters(item))
    _write(
        {
            "test": item.nodeid,
            "phase": report.when,
            "outcome": report.outcome,
            # As pytest-timeout says it.
            "late": isinstance(error, pytest.fail.Exception) and str(error).startswith("Timeout"),
        }
    )
    return report


def _without_parameters(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def _write(line: dict[str, object]) -> None:
    with Path(os.environ[FILE]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
