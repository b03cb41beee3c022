"""How long the chaos lasts, and from which seed."""

import secrets
from collections.abc import Callable

import pytest

SHORT = 9.0
"""Seconds of faults in the form that is part of every run."""
_BESIDE = 150.0
"""Seconds that starting, and coming to rest afterwards, may take beside."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos", "chaos suite")
    group.addoption(
        "--chaos-seconds",
        type=float,
        default=SHORT,
        help="for how long to cause faults (default: %(default)s)",
    )
    group.addoption("--chaos-seed", type=int, default=None, help="which faults (default: drawn and printed)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("chaos_length"):
            item.add_marker(pytest.mark.timeout(_seconds(config) + _BESIDE))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "chaos_length: takes as long as --chaos-seconds says")


def _seconds(config: pytest.Config) -> float:
    # Where this file is found only while tests are collected, the options are not there.
    return float(config.getoption("--chaos-seconds", default=SHORT))


@pytest.fixture
def chaos_seconds(request: pytest.FixtureRequest) -> float:
    return _seconds(request.config)


@pytest.fixture
def chaos_seed(request: pytest.FixtureRequest) -> int:
    seed = request.config.getoption("--chaos-seed", default=None)
    return secrets.randbelow(1_000_000) if seed is None else int(seed)


@pytest.fixture
def say(pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Show a line at once, whether the test fails or not."""

    def line(text: str) -> None:
        with capsys.disabled():
            pytestconfig.get_terminal_writer().line(text, flush=True)

    return line
