"""Running the command as its users do: as a process."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import apalis_pgmq.cli
from apalis_pgmq.pgmq import PgMqBackend, PgMqQueues

SOURCES = Path(apalis_pgmq.cli.__file__).parents[2]

APP = """
import asyncio
import os
import time
from dataclasses import dataclass

from apalis_pgmq.core import Config, Started
from apalis_pgmq.pgmq import PgMqBackend, PgMqQueues
from apalis_pgmq.worker import Monitor, WorkerBuilder


@dataclass
class Job:
    number: int
    seconds: float


def note(*words):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(" ".join(map(str, words)) + "\\n")


async def handle(job: Job) -> None:
    note("begin", job.number, os.getpid())
    await asyncio.sleep(job.seconds)
    note("end", job.number, os.getpid())


def hang(job: Job) -> None:
    note("begin", job.number, os.getpid())
    time.sleep(job.seconds)


def on_event(event):
    if isinstance(event, Started):
        note("loop", type(asyncio.get_running_loop()).__module__)
        note("up", os.getpid())


config = Config(os.environ["QUEUE"], poll_interval=0.02)
builder = (
    WorkerBuilder("jobs")
    .backend(PgMqBackend(os.environ["URL"], config, Job))
    .concurrency(5)
    .on_event(on_event)
)
worker = builder.build(handle)
hanging = builder.build(hang)
monitor = Monitor(shutdown_timeout=20).register(builder.build(handle))


def factory():
    return builder.build(handle)


async def async_factory():
    await asyncio.sleep(0)
    return Monitor().register(builder.build(handle))


def with_parameters(url):
    return worker


def makes_text():
    return "text"


class holder:
    inner = worker


text = "text"
"""


@pytest.fixture
def environment():
    """The variables that the command gets."""
    path = os.pathsep.join(filter(None, (str(SOURCES), os.environ.get("PYTHONPATH"))))
    mine = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "200", "TERM": "xterm"}
    return {key: value for key, value in os.environ.items() if key != "APALIS_PGMQ_URL"} | mine


@pytest.fixture
def cli(environment, tmp_path):
    """Run the command to its end."""

    def run(*arguments, cwd=tmp_path, answer=None, **env):
        return subprocess.run(
            [sys.executable, "-m", "apalis_pgmq.cli", *arguments],
            cwd=cwd,
            env=environment | env,
            input=answer,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    return run


async def queue_length(url, queue):
    """Count the messages of a queue."""
    async with PgMqQueues(url) as queues:
        return (await queues.metrics(queue)).length


async def drop_queue(url, queue):
    async with PgMqQueues(url) as queues:
        return await queues.drop(queue)


def is_running(pid):
    listing = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listing.stdout.strip()[:1] not in {"", "Z"}


def eventually(condition, seconds=15.0, *, what=lambda: ""):
    """Wait until a condition holds and return what it gave, or fail."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"it did not happen in time; {what()}"
        time.sleep(0.02)
    return result


class App:
    """A user's program in a directory of its own, and what it noted down."""

    def __init__(self, directory, url, queue, environment):
        self.directory = directory
        self.queue = queue
        self.url = url
        self._notes = directory / "notes"
        self._notes.touch()
        self._log = directory / "log"
        self._environment = environment | {"URL": url, "QUEUE": queue, "NOTES": str(self._notes)}
        self._processes = []
        (directory / "app.py").write_text(APP)

    def run(self, *arguments):
        """Start ``apalis-pgmq run``, in a session of its own as a terminal's foreground job would be."""
        with self._log.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "apalis_pgmq.cli", "run", *arguments],
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def notes(self, kind):
        lines = [line.split() for line in self._notes.read_text().splitlines()]
        return [words[1:] for words in lines if words[0] == kind]

    def log(self):
        return self._log.read_text()

    def wait_for(self, kind, count):
        """Wait for notes of a kind; return them."""

        def enough():
            notes = self.notes(kind)
            return notes if len(notes) >= count else None

        return eventually(enough, what=self.log)

    def workers_up(self, count):
        """Wait until so many worker processes have begun; return their ids."""
        return [int(pid) for (pid,) in self.wait_for("up", count)]

    def wait_for_log(self, text, count=1):
        eventually(lambda: self.log().count(text) >= count, what=self.log)

    def push(self, *jobs):
        async def push():
            async with PgMqBackend(self.url, self.queue, dict) as backend:
                await backend.push_many({"number": number, "seconds": seconds} for number, seconds in jobs)

        asyncio.run(push())

    def end(self):
        """Kill what is left."""
        for process in self._processes:
            process.kill()
            process.wait()
        for (pid,) in self.notes("up"):
            if is_running(pid):
                os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def app(tmp_path, pgmq_url, queue, environment):
    program = App(tmp_path, pgmq_url, queue, environment)
    yield program
    program.end()
