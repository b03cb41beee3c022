"""The settings of a queue: defaults, copies and refusals."""

import dataclasses
import math
from datetime import timedelta
from typing import Any

import pytest

from apalis_pgmq import ApalisError, Config, ConfigError


def test_the_defaults() -> None:
    config = Config("emails")

    assert config.queue == "emails"
    assert config.visibility_timeout == timedelta(seconds=30)
    assert config.poll_interval == timedelta(milliseconds=100)
    assert config.max_retries == 5
    assert config.on_success == "delete"
    assert config.dead_letter == "queue"
    assert config.max_lease == timedelta(hours=12)
    assert config.claim_check_over is None


@pytest.mark.parametrize(
    ("method", "setting", "value", "stored"),
    [
        ("with_visibility_timeout", "visibility_timeout", timedelta(minutes=2), timedelta(minutes=2)),
        ("with_visibility_timeout", "visibility_timeout", 120, timedelta(minutes=2)),
        ("with_poll_interval", "poll_interval", 0.5, timedelta(milliseconds=500)),
        ("with_max_retries", "max_retries", 0, 0),
        ("with_on_success", "on_success", "archive", "archive"),
        ("with_dead_letter", "dead_letter", "archive", "archive"),
        ("with_dead_letter", "dead_letter", None, None),
        ("with_max_lease", "max_lease", 60, timedelta(minutes=1)),
        ("with_max_lease", "max_lease", None, None),
        ("with_claim_check_over", "claim_check_over", 8000, 8000),
        ("with_claim_check_over", "claim_check_over", None, None),
    ],
)
def test_with_methods_return_a_copy_with_one_change(
    method: str, setting: str, value: object, stored: object
) -> None:
    original = Config("emails", visibility_timeout=7, poll_interval=3, max_retries=2)

    changed = getattr(original, method)(value)

    assert getattr(changed, setting) == stored
    assert original == Config("emails", visibility_timeout=7, poll_interval=3, max_retries=2)
    assert changed == dataclasses.replace(original, **{setting: value})


def test_with_methods_chain() -> None:
    chained = Config("emails").with_visibility_timeout(120).with_poll_interval(0.5).with_max_retries(3)

    assert chained == Config("emails", visibility_timeout=120, poll_interval=0.5, max_retries=3)


def test_a_config_cannot_be_changed() -> None:
    config = Config("emails")

    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_retries = 1  # type: ignore[misc]


def test_equal_configs_are_one_key() -> None:
    assert len({Config("emails"), Config("emails"), Config("emails", max_retries=1)}) == 2


def test_settings_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        Config("emails", 30)  # type: ignore[misc]


def test_of_takes_a_name_or_a_config() -> None:
    config = Config("emails", max_retries=1)

    assert Config.of(config) is config
    assert Config.of("emails") == Config("emails")


@pytest.mark.parametrize("value", [timedelta(seconds=2), 2, 2.0], ids=["timedelta", "int", "float"])
def test_a_duration_is_a_timedelta_or_seconds(value: timedelta | float) -> None:
    assert Config("emails", visibility_timeout=value).visibility_timeout == timedelta(seconds=2)


@pytest.mark.parametrize(
    ("setting", "shortest", "longest"),
    [
        ("visibility_timeout", timedelta(milliseconds=100), timedelta(days=7)),
        ("poll_interval", timedelta(milliseconds=1), timedelta(hours=1)),
    ],
)
def test_a_duration_has_inclusive_bounds(setting: str, shortest: timedelta, longest: timedelta) -> None:
    for allowed in (shortest, longest):
        assert getattr(Config("emails", max_lease=None, **{setting: allowed}), setting) == allowed
    for too_much in (shortest - timedelta.resolution, longest + timedelta.resolution):
        with pytest.raises(ConfigError, match=setting):
            Config("emails", max_lease=None, **{setting: too_much})


def test_a_long_visibility_timeout_needs_no_other_setting() -> None:
    config = Config("emails", visibility_timeout=timedelta(days=1))

    assert config.visibility_timeout == timedelta(days=1)


def test_max_lease_goes_with_any_visibility_timeout() -> None:
    assert Config("emails", visibility_timeout=30, max_lease=29).max_lease == timedelta(seconds=29)
    with pytest.raises(ConfigError, match="max_lease must be longer than zero"):
        Config("emails", max_lease=0)


@pytest.mark.parametrize("value", ["delete", "dlq", True, 0])
def test_a_bad_dead_letter_is_refused_by_name_and_value(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^dead_letter must be") as caught:
        Config("emails", dead_letter=value)

    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("dead_letter", ["archive", None])
def test_a_name_may_be_longer_where_there_is_no_dead_letter_queue(dead_letter: Any) -> None:
    assert Config("a" * 47, dead_letter=dead_letter).queue == "a" * 47
    with pytest.raises(ConfigError, match="at most 47"):
        Config("a" * 48, dead_letter=dead_letter)


@pytest.mark.parametrize("setting", ["visibility_timeout", "poll_interval"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "longer than zero"),
        (timedelta(0), "longer than zero"),
        (-1.5, "not -1.5 s"),
        (timedelta(seconds=-3), "not -3 s"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (True, "True"),
        ("30s", "'30s'"),
        (None, "None"),
        (1e9, "at most"),
        (1e300, "at most"),
        (10**400, "at most"),
        (timedelta.max, "at most"),
        (1e-5, "at least"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_bad_duration_is_refused_by_name_and_value(setting: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{setting} ") as caught:
        Config("emails", **{setting: value})

    assert said in str(caught.value)


@pytest.mark.parametrize("value", [-1, 1_000_001, 2.0, True, "5", None])
def test_bad_max_retries_are_refused_by_name_and_value(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^max_retries ") as caught:
        Config("emails", max_retries=value)

    assert str(caught.value).endswith(f"not {value!r}")


@pytest.mark.parametrize("value", [0, 1, 1_000_000])
def test_good_max_retries(value: int) -> None:
    assert Config("emails", max_retries=value).max_retries == value


@pytest.mark.parametrize("value", ["keep", "DELETE", None, True])
def test_a_bad_on_success_is_refused_by_name_and_value(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^on_success must be 'delete' or 'archive'") as caught:
        Config("emails", on_success=value)

    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", ["q", "a" * 43, "Emails", "my-queue", "e_mails", "a b", "7", "é" * 28])
def test_good_queue_names(name: str) -> None:
    assert Config(name).queue == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "must not be empty"),
        ("   ", "must not be empty"),
        ("a" * 44, "at most 43"),
        ("a$b", "'$'"),
        ("a;b", "';'"),
        ("a--b", "'--'"),
        ("a'b", '"\'"'),
        ("a\0b", "x00"),
        (None, "None"),
        (7, "7"),
    ],
)
def test_bad_queue_names_are_refused_by_value(name: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=r"^queue ") as caught:
        Config(name)

    assert said in str(caught.value)


def test_the_refusal_of_a_long_name_says_how_long_it_is() -> None:
    with pytest.raises(ConfigError, match="has 44 characters"):
        Config("a" * 44)


def test_copies_are_checked_too() -> None:
    with pytest.raises(ConfigError, match="max_retries"):
        Config("emails").with_max_retries(-1)


def test_a_config_error_is_a_value_error_of_this_library() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, ApalisError)


def test_the_dead_letter_queue_is_named_after_the_queue() -> None:
    assert Config("emails").dead_letter_queue == "emails_dlq"


def test_the_longest_name_leaves_room_for_the_dead_letter_queue() -> None:
    assert len(Config("a" * 43).dead_letter_queue) == 47


@pytest.mark.parametrize("name", ["ü" * 29, "İx", "Ünder"])
def test_names_that_postgresql_would_make_something_else_of_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="queue name"):
        Config(name)


@pytest.mark.parametrize("value", [0, -1, 2**31, 1.5, "8 kB", True])
def test_a_bound_of_large_payloads_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="claim_check_over must be"):
        Config("emails", claim_check_over=value)  # type: ignore[arg-type]
