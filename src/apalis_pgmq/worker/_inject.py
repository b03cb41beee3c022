"""Handlers' arguments by type annotation, resolved once when a worker is built."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
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

Source: TypeAlias = Callable[[Task[Any]], object]

_OF_TASK: dict[Any, Source] = {
    Task: lambda task: task,
    TaskId: lambda task: task.id,
    Attempt: lambda task: task.attempt,
}


def bind(
    handler: Callable[..., Any],
    *,
    message_type: Any,
    data: Sequence[object],
    provided: Mapping[type, Source],
) -> Callable[[Task[Any]], Any]:
    """Return a function of the task alone that calls the handler with all that it asks for.

    Args:
        handler: a callable; its first parameter takes the message.
        message_type: the type of the messages that will come.
        data: what `Data` parameters can ask for.
        provided: what else can be asked for, by type.

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
        return lambda task: handler(task.args)
    keywords = list(by_keyword.items())
    return lambda task: handler(
        task.args,
        *[source(task) for source in by_position],
        **{key: source(task) for key, source in keywords},
    )


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
    provided: Mapping[type, Source],
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
    for known in (_OF_TASK, provided):
        if _hashable(wanted) and wanted in known:
            return known[wanted]
    if has_default:
        return None
    if annotation is inspect.Parameter.empty:
        raise HandlerError(
            f"{name}: parameter {parameter.name!r} has no annotation, so it is not known what to pass"
        )
    known_names = sorted(_type_name(one) for one in (*_OF_TASK, *provided))
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
    value = matches[0]
    return lambda _task: value


def _check_message(name: str, parameter: inspect.Parameter, annotation: Any, message_type: Any) -> None:
    """Refuse a handler of another message type where both types are plain classes."""
    if annotation is Task or typing.get_origin(annotation) is Task:
        raise HandlerError(f"{name} must take the message as its first parameter; a Task can be a later one")
    if (
        isinstance(annotation, type)
        and isinstance(message_type, type)
        and typing.get_origin(annotation) is None
        and not typing.is_typeddict(annotation)
        and annotation is not inspect.Parameter.empty
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
        names |= inspect.getclosurevars(function).nonlocals
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
    try:
        return issubclass(kind, of)
    except TypeError:
        return True
