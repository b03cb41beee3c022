"""A pytest plugin: no test leaves an asyncio task, a thread or a connection behind, and no run a process.

It looks when all fixtures of a test have been torn down; tasks it looks for last of all in the test's event loop.
What is about to end gets a moment to do so.
"""

import asyncio
import inspect
import os
import subprocess
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from typing import Any

import asyncpg
import pytest

_PATIENCE = float(os.environ.get("LEAK_PATIENCE", "3"))
_connections: "weakref.WeakSet[asyncpg.Connection[Any]]" = weakref.WeakSet()
_before = pytest.StashKey[tuple[set[threading.Thread], set[int]]]()
_left_processes = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Take notice of every connection that this process makes, whoever makes it."""
    init = asyncpg.connection.Connection.__init__

    def noticed(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        _connections.add(self)

    asyncpg.connection.Connection.__init__ = noticed
    config.add_cleanup(lambda: setattr(asyncpg.connection.Connection, "__init__", init))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            # The first to be set up is the last to be torn down.
            item.fixturenames.insert(0, "_no_task_is_left")


@pytest.fixture
async def _no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    deadline = time.monotonic() + _PATIENCE
    while left := [task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()]:
        if time.monotonic() > deadline:
            pytest.fail(f"the test leaves asyncio tasks behind: {left}", pytrace=False)
        await asyncio.sleep(0.01)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.stash[_before] = (set(threading.enumerate()), {id(one) for one in _open_connections()})
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    result = yield
    threads, connections = item.stash[_before]
    _until_none("threads", lambda: set(threading.enumerate()) - threads)
    _until_none("connections", lambda: [one for one in _open_connections() if id(one) not in connections])
    return result


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Every fixture is torn down by now, those of the session included."""
    deadline = time.monotonic() + _PATIENCE
    while (left := _descendants()) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        session.config.stash[_left_processes] = left
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for process in config.stash.get(_left_processes, []):
        terminalreporter.write_line(f"ERROR the run leaves a process behind: {process}", red=True)


def _until_none(what: str, find: Callable[[], Collection[object]]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while left := find():
        if time.monotonic() > deadline:
            pytest.fail(f"the test leaves {what} behind: {left}", pytrace=False)
        time.sleep(0.01)


def _open_connections() -> "list[asyncpg.Connection[Any]]":
    return [connection for connection in _connections if not connection.is_closed()]


def _descendants() -> list[str]:
    """The processes below this one that have not ended."""
    listing = subprocess.run(
        ["ps", "-Aww", "-o", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    children: dict[int, list[tuple[int, str]]] = {}
    for line in listing.splitlines():
        pid, parent, state, command = line.split(maxsplit=3)
        if not state.startswith("Z") and not command.startswith("ps -Aww -o pid="):
            children.setdefault(int(parent), []).append((int(pid), command))
    found = []
    parents = [os.getpid()]
    while parents:
        for pid, command in children.get(parents.pop(), []):
            found.append(f"{pid} {command}")
            parents.append(pid)
    return found
