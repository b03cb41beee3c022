"""Finding what to run: ``module:attribute``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from apalis_pgmq.worker import Monitor, Worker

from ._exits import UsageError

if TYPE_CHECKING:
    from types import ModuleType

Runnable: TypeAlias = Monitor | Worker[Any]
Target: TypeAlias = Runnable | Callable[[], object]
"""Something to run, or a factory of it, which may be a coroutine function."""


def find(target: str) -> Target:
    """Import the module and return its attribute, from the current directory first.

    Raises:
        UsageError: it is not there, or nothing that could be run.
        Exception: whatever the module itself raises while it is imported.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute or ":" in attribute:
        raise UsageError(f"target {target!r} must have the form module:attribute, such as 'app:worker'")
    module = _import(module_name)
    found: Any = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise UsageError(
                f"module {module_name!r} has no attribute {attribute!r}; {_candidates(module)}"
            ) from None
    if isinstance(found, Monitor | Worker):
        return found
    if not callable(found) or inspect.isclass(found):
        raise UsageError(_not_runnable(target, found))
    _refuse_parameters(target, found)
    return found  # type: ignore[no-any-return]


async def make(target: str, found: Target) -> Runnable:
    """Return what to run, made by its factory if it has one.

    Raises:
        UsageError: the factory made something else.
        Exception: whatever the factory itself raises.
    """
    if isinstance(found, Monitor | Worker):
        return found
    made = found()
    if inspect.isawaitable(made):
        made = await made
    if not isinstance(made, Monitor | Worker):
        raise UsageError(f"{_not_runnable(target, made)}, which {target} returned")
    return made


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if sys.path[:1] not in ([here], [""]):
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        # Only if it is this module that is missing, rather than one that it imports in turn.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            hint = f"; did you mean {name.removesuffix('.py')}:...?" if name.endswith(".py") else ""
            raise UsageError(f"module {name!r} not found{hint}") from None
        raise


def _candidates(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Monitor | Worker)]
    return f"it has {', '.join(names)}" if names else "there is no Monitor or Worker in it"


def _not_runnable(target: str, value: object) -> str:
    return (
        f"target {target!r} must be a Monitor, a Worker or a function that returns one, "
        f"not {value if inspect.isclass(value) else type(value).__name__!r}"
    )


def _refuse_parameters(target: str, factory: Callable[..., object]) -> None:
    try:
        signature = inspect.signature(factory)
    except ValueError:  # written in C, and does not say
        return
    try:
        signature.bind()
    except TypeError as error:
        raise UsageError(
            f"target {target!r} must be a function without parameters, but it takes {signature}: {error}"
        ) from None
