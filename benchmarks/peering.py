"""The peers: how each is installed, and how much it is given to do."""

from __future__ import annotations

import asyncio
import os
import sys
import venv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .draining import together, worker_job
from .listening import IDLE_CONCURRENCY, RATE, percentile
from .processes import ProcessError, measured, run
from .results import Target
from .server import QUEUE, TABLE

if TYPE_CHECKING:
    from pathlib import Path

    from .bench import Bench, Sample

_WITHIN: Final = 900.0
_SHOWN_LINES: Final = 3
_SETTLE: Final = 2.0


class PeerError(Exception):
    """A peer cannot be installed or run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Somebody else who does the same job.

    Attributes:
        module: the one in `benchmarks.peers`.
        title: what people call it.
        requirements: for pip.
        messages: how many it handles in a few seconds.
        target: how many times as fast `apalis_pgmq` should be.
        listens_first: whether it sees only what is sent while it listens.
    """

    module: str
    title: str
    requirements: tuple[str, ...]
    messages: int
    target: Target | None = None
    listens_first: bool = False


PEERS: Final = {
    "pgqueuer": Peer(
        module="pgqueuer",
        title="pgqueuer",
        requirements=("pgqueuer==1.6.0", "asyncpg==0.32.0"),
        messages=50_000,
        target=Target(must=2.5, aim=4),
    ),
    "pgmq-py": Peer(
        module="pgmq_py",
        title="pgmq-py (asyncio)",
        requirements=("pgmq[async]==1.1.4",),
        messages=100_000,
        target=Target(must=2, aim=3),
    ),
    "procrastinate": Peer(
        module="procrastinate",
        title="procrastinate",
        requirements=("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9"),
        messages=2_000,
        target=Target(must=50, aim=80),
    ),
    "celery": Peer(
        module="celery",
        title="Celery + kombu-pgmq",
        requirements=("celery==5.7.0", "kombu-pgmq[all]==0.2.0"),
        messages=2_000,
        target=Target(must=70, aim=100),
    ),
    "taskiq-postgres": Peer(
        module="taskiq_postgres",
        title="taskiq + taskiq-postgres",
        requirements=("taskiq==0.13.0", "taskiq-postgres[asyncpg]==0.9.1"),
        messages=5_000,
        listens_first=True,
    ),
    "dramatiq-postgres": Peer(
        module="dramatiq_postgres",
        title="dramatiq + dramatiq-postgres",
        requirements=("dramatiq-postgres==1.4.0", "psycopg[binary,pool]==3.3.9"),
        messages=5_000,
    ),
}
"""By the name for the command line."""


async def installed(name: str, venvs: Path) -> Path:
    """Return the interpreter of a peer's virtual environment, which is made if it is missing.

    Raises:
        PeerError: the peer cannot be installed.
    """
    peer = PEERS[name]
    home = venvs / name
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = "\n".join((sys.version, *peer.requirements))
    note = home / "installed.txt"
    if note.exists() and note.read_text(encoding="utf-8") == wanted:
        return python
    await asyncio.to_thread(venv.EnvBuilder(clear=True, with_pip=True).create, home)
    process = await asyncio.create_subprocess_exec(
        python,
        *("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = [line for line in output.decode(errors="replace").splitlines() if "ERROR" in line]
        raise PeerError(f"cannot be installed: {' '.join(lines[-_SHOWN_LINES:])}")
    note.write_text(wanted, encoding="utf-8")
    return python


async def drain_peer(bench: Bench, name: str, python: Path, messages: int) -> Sample:
    """Have a peer drain so many messages, which it is given by its own means before the clock runs.

    Raises:
        ProcessError: it failed.
    """
    peer = PEERS[name]
    module = f"peers.{peer.module}"
    async with bench.server.database() as database:
        job: dict[str, Any] = {"url": database.url, "queue": QUEUE, "messages": messages}
        filling, draining = {**job, "phase": "preload"}, {**job, "phase": "drain"}
        if not peer.listens_first:
            await run(module, filling, python=python, within=_WITHIN, name=f"{name}, preload")
            await bench.server.settle(database)
        async with measured(module, draining, python=python, name=name) as one:
            if peer.listens_first:
                await run(module, filling, python=python, within=_WITHIN, name=f"{name}, preload")
            before = await bench.server.transactions(database)
            await one.say(go=True)
            result = await one.result(_WITHIN)
        sample = {**together([result], messages), "versions": result["versions"]}
        await bench.server.left(database)
        if not peer.listens_first:
            # Otherwise those of the preload are not all counted yet when the clock begins to run.
            sample["transactions"] = await bench.server.transactions(database) - before
    return sample


async def latency_of_peer(bench: Bench, name: str, python: Path, seconds: float) -> Sample:
    """Have a peer start on single messages sent at random times by its own means.

    Raises:
        ProcessError: it failed.
    """
    module = f"peers.{PEERS[name].module}"
    async with bench.server.database() as database:
        job = {"url": database.url, "queue": QUEUE, "messages": 0, "rate": RATE, "seconds": seconds}

        def phase(which: str) -> dict[str, Any]:
            return {**job, "phase": which}

        await run(module, phase("preload"), python=python, within=_WITHIN, name=f"{name}, preload")
        async with measured(module, phase("listen"), python=python, name=name) as one:
            await one.say(go=True)
            await asyncio.sleep(_SETTLE)
            sent = await run(module, phase("send"), python=python, within=_WITHIN, name=f"{name}, send")
            await asyncio.sleep(_SETTLE)
            await one.say(stop=True)
            result = await one.result(_WITHIN)
    return percentiles(name, sent["sent"], result["starts"])


async def latency_of_ours(bench: Bench, seconds: float) -> Sample:
    """Have an idle worker of `apalis_pgmq` start on single messages sent at random times by plain SQL."""
    async with bench.server.database() as database:
        job = worker_job(bench, database, handler="stamp", concurrency=IDLE_CONCURRENCY)
        sending = {"urls": [database.url], "table": TABLE, "rate": RATE}
        async with (
            measured("measured.worker", job, name="apalis-pgmq") as worker,
            measured("measured.sender", sending) as sender,
        ):
            await worker.say(go=True)
            await sender.say(go=True)
            await asyncio.sleep(_SETTLE)
            await sender.say(to=0, seconds=seconds, first=0)
            sent = (await sender.expect("sent", _WITHIN))["sent"]
            await asyncio.sleep(_SETTLE)
            await worker.say(stop=True)
            result = await worker.result(_WITHIN)
    return percentiles("apalis-pgmq", sent, result["starts"])


def percentiles(name: str, sent: list[list[Any]], starts: list[list[Any]]) -> Sample:
    """Return the percentiles of the time from when a message is being sent to the start of its handler, in ms.

    Raises:
        ProcessError: a message was never started on.
    """
    started = {start[0]: start[1] for start in reversed(starts)}
    if missing := sum(one[0] not in started for one in sent):
        raise ProcessError(f"{name} did not start on {missing} of {len(sent)} messages")
    late = [(started[one[0]] - one[1]) * 1000 for one in sent]
    figures = {f"p{percent}": percentile(late, percent) for percent in (50, 95, 99)}
    return {"messages": len(late), **figures, "latencies_ms": [round(value, 3) for value in late]}


def reason(error: Exception) -> str:
    """Return why a peer could not be measured, on one line."""
    text = str(error).strip()
    if isinstance(error, ProcessError):
        lines = text.splitlines()
        text = f"could not be run: {lines[0]} {lines[-1].strip() if len(lines) > 1 else ''}"
    return text.strip()
