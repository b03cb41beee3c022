"""Events are frozen values with named fields."""

import dataclasses
from typing import Any

import pytest

from apalis_pgmq import (
    Attempt,
    DeadLettered,
    Engaged,
    Event,
    Failed,
    Idle,
    LeaseLost,
    MessageEvent,
    Stalled,
    Started,
    Stopped,
    Succeeded,
    TaskId,
)

WORKER = {"worker": "w", "queue": "q"}
MESSAGE = {**WORKER, "id": TaskId(1), "attempt": Attempt(1)}

ALL: list[tuple[type[Event], dict[str, Any]]] = [
    (Started, WORKER),
    (Idle, WORKER),
    (Stalled, {**WORKER, "seconds": 1.5}),
    (Stopped, WORKER),
    (Engaged, MESSAGE),
    (Succeeded, {**MESSAGE, "result": None, "duration": 0.1}),
    (Failed, {**MESSAGE, "error": ValueError(), "duration": 0.1, "will_retry": True}),
    (DeadLettered, {**MESSAGE, "reason": "aborted"}),
    (LeaseLost, MESSAGE),
]


@pytest.mark.parametrize(("kind", "fields"), ALL, ids=lambda value: getattr(value, "__name__", ""))
def test_an_event_is_frozen(kind: type[Event], fields: dict[str, Any]) -> None:
    event = kind(**fields)

    for name in fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, name, None)
    assert event == kind(**fields)


@pytest.mark.parametrize(("kind", "fields"), ALL, ids=lambda value: getattr(value, "__name__", ""))
def test_an_event_takes_its_fields_by_name_only(kind: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        kind(*fields.values())


@pytest.mark.parametrize("kind", [Engaged, Succeeded, Failed, DeadLettered, LeaseLost])
def test_what_concerns_a_message_is_a_message_event(kind: type[Event]) -> None:
    assert issubclass(kind, MessageEvent)


@pytest.mark.parametrize("kind", [Started, Idle, Stalled, Stopped])
def test_what_concerns_the_worker_is_not(kind: type[Event]) -> None:
    assert issubclass(kind, Event)
    assert not issubclass(kind, MessageEvent)
