"""Waiting for a store that is away, and saying so once."""

import logging

import pytest

from apalis_pgmq.delivery import Backoff
from apalis_pgmq.delivery._outage import Outage

from .support import away


def test_delays_double_up_to_a_bound_and_are_shortened_by_half_at_most() -> None:
    backoff = Backoff(first=0.1, longest=1.0)

    delays = [backoff.delay() for _ in range(10)]

    for delay, bound in zip(delays, [0.1, 0.2, 0.4, 0.8] + [1.0] * 6, strict=True):
        assert bound / 2 <= delay <= bound


def test_delays_are_spread() -> None:
    assert len({Backoff(first=1.0).delay() for _ in range(20)}) > 1


def test_reset_starts_again() -> None:
    backoff = Backoff(first=0.1, longest=10.0)
    for _ in range(5):
        backoff.delay()

    backoff.reset()

    assert backoff.delay() <= 0.1


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "apalis_pgmq")
    return caplog


def test_an_outage_is_logged_once_whoever_finds_it(logged: pytest.LogCaptureFixture) -> None:
    outage = Outage("mail", "emails")

    for part in ("fetcher", "settler", "fetcher", "lease keeper"):
        outage.begins(part, away())

    assert [record.getMessage() for record in logged.records] == [
        "worker mail: queue emails is unavailable, trying again until it answers: no route to host"
    ]


def test_its_end_is_logged_once_by_the_last_part(logged: pytest.LogCaptureFixture) -> None:
    outage = Outage("mail", "emails")
    outage.begins("fetcher", away())
    outage.begins("settler", away())
    logged.clear()

    outage.is_over("fetcher")
    assert logged.records == []
    outage.is_over("lease keeper")
    outage.is_over("settler")
    outage.is_over("settler")

    [record] = logged.records
    assert record.getMessage().startswith("worker mail: queue emails is available again after 0.")


def test_no_outage_no_log(logged: pytest.LogCaptureFixture) -> None:
    Outage("mail", "emails").is_over("fetcher")

    assert logged.records == []


def test_the_next_outage_is_logged_again(logged: pytest.LogCaptureFixture) -> None:
    outage = Outage("mail", "emails")
    for _ in range(2):
        outage.begins("fetcher", away())
        outage.is_over("fetcher")

    assert len(logged.records) == 4
