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


def pytest_configure() -> None:
    _write({"package": str(Path(apalis_pgmq.__file__).parent)})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield
    error = call.excinfo.value if call.excinfo is not None else None
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


def _write(line: dict[str, object]) -> None:
    with Path(os.environ[FILE]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
