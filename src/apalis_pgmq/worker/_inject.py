"""Handlers' arguments by type annotation, resolved once when a worker is built."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

from apalis_pgmq.core import Attempt, HandlerError, Task, TaskId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

D = TypeVar("D")


class _DataMarker:
    """Marks a parameter that is filled from `WorkerBuilder.data`."""


Data: TypeAlias = Annotated[D, _DataMarker]
"""``Data[Mailer]`` as a parameter's annotation: the handler is given the `Mailer` registered with
`WorkerBuilder.data`. To a type checker the parameter is simply a `Mailer`."""

Source: TypeAlias = Callable[[Task[Any], object], object]
"""Makes an argument from the task and the transaction that it is handled in, if any."""

_PROMOTED = frozenset({(int, float), (int, complex), (float, complex)})
"""Types that a type checker takes for each other although neither is a subclass."""

_OF_TASK: dict[Any, Source] = {
    Task: lambda task, _transaction: task,
    TaskId: lambda task, _transaction: task.id,
    Attempt: lambda task, _transaction: task.attempt,
}


@dataclass(frozen=True, slots=True)
class Bound:
    """A handler with the sources of its arguments.

    Attributes:
        call: calls it with what a task alone gives.
        call_in: calls it with a task and a transaction.
        wants_transaction: whether it asks for a transaction, so that only ``call_in`` will do.
    """

    call: Callable[[Task[Any]], Any]
    call_in: Callable[[Task[Any], object], Any]
    wants_transaction: bool


def bind(
    handler: Callable[..., Any],
    *,
    message_type: Any,
    data: Sequence[object],
    of_worker: Mapping[type, object],
    of_task: Mapping[type, Callable[[Task[Any]], object]],
    transaction_type: type | None,
    takes_batch: bool,
) -> Bound:
    """Find out where everything comes from that a handler asks for.

    Args:
        handler: a callable; its first parameter takes the message, or the batch.
        message_type: the type of what its first parameter will be given.
        data: what `Data` parameters can ask for.
        of_worker: what else is the same for every task, by type.
        of_task: what else can be made from a task, by type.
        transaction_type: what to ask for to be run in a transaction; None: there are none.
        takes_batch: whether it is given batches; then it cannot ask for what belongs to one task.

    Raises:
        HandlerError: the handler asks for what nobody provides, by name.
    """
    name = describe(handler)
    try:
        parameters = list(inspect.signature(handler).parameters.values())
    except (TypeError, ValueError) as error:
        raise HandlerError(f"{name} cannot be a handler: {error}") from error
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in (*positional, inspect.Parameter.VAR_POSITIONAL):
        raise HandlerError(f"{name} must take the message as its first parameter")
    _check_message(name, parameters[0], _annotation(handler, parameters[0]), message_type)

    provided: dict[Any, Source] = {kind: _constant(value) for kind, value in of_worker.items()}
    if not takes_batch:
        provided |= _OF_TASK | {kind: _from_task(make) for kind, make in of_task.items()}
    transaction: Source = lambda _task, transaction: transaction  # noqa: E731 - told apart by identity
    if transaction_type is not None:
        provided[transaction_type] = transaction

    by_position: list[Source] = []
    by_keyword: dict[str, Source] = {}
    for parameter in parameters[1:]:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        source = _source(name, handler, parameter, data, provided)
        if source is None:
            continue
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            by_position.append(source)
        else:
            by_keyword[parameter.name] = source

    if not by_position and not by_keyword:
        return Bound(
            lambda task: handler(task.args), lambda task, _: handler(task.args), wants_transaction=False
        )
    keywords = list(by_keyword.items())

    def call_in(task: Task[Any], transaction: object) -> Any:
        return handler(
            task.args,
            *[source(task, transaction) for source in by_position],
            **{key: source(task, transaction) for key, source in keywords},
        )

    wants_transaction = transaction in (*by_position, *by_keyword.values())
    return Bound(lambda task: call_in(task, None), call_in, wants_transaction=wants_transaction)


def _constant(value: object) -> Source:
    return lambda _task, _transaction: value


def _from_task(make: Callable[[Task[Any]], object]) -> Source:
    return lambda task, _transaction: make(task)


def describe(handler: object) -> str:
    """Return the name by which a user knows a handler."""
    if isinstance(handler, partial):
        return describe(handler.func)
    name: str = getattr(handler, "__qualname__", type(handler).__qualname__)
    return f"handler {name!r}"


def _source(
    name: str,
    handler: Callable[..., Any],
    parameter: inspect.Parameter,
    data: Sequence[object],
    provided: Mapping[Any, Source],
) -> Source | None:
    """Return where a parameter's value comes from; None: from its own default."""
    annotation = _annotation(handler, parameter)
    has_default = parameter.default is not inspect.Parameter.empty
    if isinstance(annotation, str):
        if has_default:
            return None
        raise HandlerError(
            f"{name}: the annotation {annotation!r} of parameter {parameter.name!r} cannot be resolved; "
            "import the type at run time (not only under TYPE_CHECKING), at module level"
        )
    origin = typing.get_origin(annotation)
    if origin is Annotated and _DataMarker in typing.get_args(annotation)[1:]:
        return _datum(name, parameter, typing.get_args(annotation)[0], data)
    wanted = origin if isinstance(origin, type) else annotation
    if _hashable(wanted) and wanted in provided:
        return provided[wanted]
    if has_default:
        return None
    if annotation is inspect.Parameter.empty:
        raise HandlerError(
            f"{name}: parameter {parameter.name!r} has no annotation, so it is not known what to pass"
        )
    known_names = sorted(_type_name(one) for one in provided)
    raise HandlerError(
        f"{name}: nobody provides parameter {parameter.name!r} of type {_type_name(annotation)}; "
        f"a handler may ask for {', '.join(known_names)}, or Data[...] of what was given to data()"
    )


def _datum(name: str, parameter: inspect.Parameter, wanted: Any, data: Sequence[object]) -> Source:
    plain = typing.get_origin(wanted) or wanted
    if plain is types.UnionType or plain is typing.Union or not isinstance(plain, type):
        raise HandlerError(
            f"{name}: parameter {parameter.name!r}: Data[...] takes one class, not {_type_name(wanted)}"
        )
    exact = [value for value in data if type(value) is plain]
    matches = exact or [value for value in data if _is_instance(value, plain)]
    if not matches:
        raise HandlerError(
            f"{name}: parameter {parameter.name!r} asks for Data[{_type_name(wanted)}], "
            f"but no {_type_name(wanted)} was given to data()"
        )
    if len(matches) > 1:
        raise HandlerError(
            f"{name}: parameter {parameter.name!r} asks for Data[{_type_name(wanted)}], "
            f"and {len(matches)} of those were given to data(); wrap them in classes of their own"
        )
    return _constant(matches[0])


def _check_message(name: str, parameter: inspect.Parameter, annotation: Any, message_type: Any) -> None:
    """Refuse a handler of another message type where both types are plain classes."""
    if annotation is Task or typing.get_origin(annotation) is Task:
        raise HandlerError(f"{name} must take the message as its first parameter; a Task can be a later one")
    if (
        isinstance(annotation, type)
        and isinstance(message_type, type)
        and typing.get_origin(annotation) is None
        and not typing.is_typeddict(annotation)
        and annotation not in (inspect.Parameter.empty, Any)
        and not _is_subclass(message_type, annotation)
    ):
        raise HandlerError(
            f"{name} takes {_type_name(annotation)} as its {parameter.name!r}, "
            f"but the queue's messages are {_type_name(message_type)}"
        )


def _annotation(handler: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return the parameter's annotation as an object, or as text if it cannot be resolved.

    One at a time, so that a name which only a type checker sees spoils its own parameter only.
    """
    annotation = parameter.annotation
    if not isinstance(annotation, str):
        return annotation
    function = handler
    while isinstance(function, partial):
        function = function.func
    if not inspect.isroutine(function) and not isinstance(function, type):
        function = type(function).__call__
    function = inspect.unwrap(function)
    names = {**getattr(function, "__globals__", {})}
    if inspect.isfunction(function):
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            # What its closure will have later, the worker itself say, is no annotation.
            with suppress(ValueError):
                names[name] = cell.cell_contents
    try:
        return eval(annotation, names)  # noqa: S307 - the annotation is the program's own text
    except (NameError, AttributeError, SyntaxError, TypeError):
        return annotation


def _type_name(wanted: Any) -> str:
    name: str = getattr(wanted, "__name__", "")
    return name if name and typing.get_origin(wanted) is None else str(wanted)


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _is_instance(value: object, kind: type) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # a Protocol that is not runtime_checkable
        return False


def _is_subclass(kind: type, of: type) -> bool:
    if (kind, of) in _PROMOTED:
        return True
    try:
        return issubclass(kind, of)
    except TypeError:
        return True
