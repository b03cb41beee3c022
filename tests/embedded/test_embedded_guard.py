"""The server never outlives the process that started it."""

import os
import signal
import subprocess
import sys

import pytest

from apalis_pgmq.embedded import EmbeddedServer

from .conftest import left_in

HOLD = """
import sys
from apalis_pgmq.embedded import EmbeddedServer

with EmbeddedServer(*sys.argv[1:]) as server:
    print(server.pid, server.data_dir, server.url, flush=True)
    {body}
"""


def started(child):
    pid, data_dir, url = child.stdout.readline().split()
    return int(pid), data_dir, url


@pytest.mark.parametrize(
    "body",
    [
        "print('ready', flush=True); sys.stdin.read()",
        # The fork has the parent's end of the pipe, and lives on.
        "import os; os.fork() or print('ready', flush=True); sys.stdin.read()",
    ],
    ids=["alone", "forked"],
)
def test_kill_9(spawn, temp_dir, eventually, gone, body):
    child = spawn(HOLD.format(body=body))
    pid, _, _ = started(child)
    assert child.stdout.readline() == "ready\n"
    assert len(left_in(temp_dir)) == 1
    child.kill()
    eventually(lambda: gone(pid))
    eventually(lambda: not left_in(temp_dir))


@pytest.mark.parametrize("delay", [0.1, 0.15, 0.2, 0.3, 0.4])
def test_kill_9_while_it_starts(spawn, temp_dir, eventually, delay):
    with EmbeddedServer():
        pass  # the shared copy of the programs, where one is needed, is there by now
    child = spawn(HOLD.format(body="sys.stdin.read()"))
    try:
        child.wait(delay)
    except subprocess.TimeoutExpired:
        child.kill()
    eventually(lambda: not processes_with(temp_dir))
    eventually(lambda: not left_in(temp_dir))


def processes_with(text):
    listing = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if str(text) in line]


@pytest.mark.parametrize(
    "ending",
    [
        "sys.exit(3)",
        "raise KeyError",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os; os._exit(0)",
    ],
)
def test_every_other_end(spawn, temp_dir, eventually, gone, ending):
    child = spawn(HOLD.format(body=ending), stderr=subprocess.DEVNULL)
    pid, _, _ = started(child)
    child.wait(30)
    eventually(lambda: gone(pid))
    eventually(lambda: not left_in(temp_dir))


def test_ctrl_c_does_not_stop_the_server_before_the_with_block_ends(spawn, fetch, gone):
    body = """
    try:
        print("reading", flush=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.stdin.read()
    """
    child = spawn(HOLD.format(body=body.strip()), start_new_session=True)
    pid, _, url = started(child)
    assert child.stdout.readline() == "reading\n"
    os.killpg(child.pid, signal.SIGINT)
    assert child.stdout.readline() == "interrupted\n"
    assert fetch(url, "select 1") == 1
    child.communicate("")
    assert gone(pid)


def test_lasting_data_after_kill_9(spawn, place, fetch, eventually, gone):
    child = spawn(HOLD.format(body="sys.stdin.read()"), place / "data")
    pid, _, url = started(child)
    fetch(url, "create table t as select 7 as a")
    child.kill()
    eventually(lambda: gone(pid))
    with EmbeddedServer(place / "data") as server:
        assert fetch(server.url, "select a from t") == 7
        assert "not properly shut down" not in server.log_path.read_text()


def test_a_fork_that_leaves_the_with_block_stops_nothing(spawn, temp_dir, fetch):
    body = """
    import os
    child = os.fork()
    if child == 0:
        sys.exit()
    os.waitpid(child, 0)
    print("waited", flush=True)
    sys.stdin.read()
    """
    child = spawn(HOLD.format(body=body.strip()))
    _, _, url = started(child)
    assert child.stdout.readline() == "waited\n"
    assert fetch(url, "select 1") == 1
    child.communicate("")
    assert child.returncode == 0
    assert left_in(temp_dir) == []


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells a process of its parent's death"
)
def test_a_killed_guard_takes_the_server_along(temp_dir, eventually, gone):
    with EmbeddedServer() as server:
        pid = server.pid
        os.kill(server._process._guard._process.pid, signal.SIGKILL)
        eventually(lambda: gone(pid))
    assert left_in(temp_dir) == []


def test_signals_to_the_guard_are_ignored(fetch):
    with EmbeddedServer() as server:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(server._process._guard._process.pid, number)
        server.restart("immediate")
        assert fetch(server.url, "select 1") == 1
