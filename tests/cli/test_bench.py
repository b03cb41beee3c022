"""``apalis-pgmq bench``: it measures what it says, and leaves no queue behind."""

import asyncio
import json
import signal
import subprocess
import sys

import pytest

from apalis_pgmq.cli._bench_common import BenchError, Pair, until
from apalis_pgmq.cli._bench_drain import Drain
from apalis_pgmq.cli._bench_latency import Latency
from apalis_pgmq.cli._bench_push import Push, Server
from apalis_pgmq.cli._bench_report import Results
from apalis_pgmq.core import ConfigError
from apalis_pgmq.pgmq import BareQueue, PgMqBackend, PgMqError, PgMqQueueMissingError

from .conftest import queue_length

SMALL = ("--messages", "500", "--seconds", "1")


async def left(db):
    rows = await db.fetch("SELECT queue_name FROM pgmq.meta WHERE queue_name LIKE 'apalis_pgmq_bench%'")
    tables = await db.fetch("SELECT tablename FROM pg_tables WHERE tablename LIKE '%apalis_pgmq_bench%'")
    return [row[0] for row in (*rows, *tables)]


def numbers(value):
    """All numbers in some JSON."""
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


async def test_shows_and_writes_what_it_measured_and_leaves_no_queue(cli, pgmq_url, db, tmp_path):
    file = tmp_path / "bench.json"
    done = cli("bench", "--url", pgmq_url, *SMALL, "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "throw-away" not in done.stdout
    for text in (
        *("Measured", "apalis-pgmq", "Bare asyncpg", "Ratio"),
        *(
            "Drain of 500 no-op messages",
            "messages/s",
            "processor µs per message",
            "transactions per message",
        ),
        *("Latency from push to handler start", "p50, ms", "p95, ms", "p99, ms"),
        *("Sending, against 16 connections", "push by 16 coroutines", "one push_many of 500"),
        *("Server, PostgreSQL", "round trip of SELECT 1, ms", "durable commit, ms"),
    ):
        assert text in done.stdout, text

    found = json.loads(file.read_text())
    assert found.keys() == {
        *("version", "messages", "concurrency", "seconds"),
        *("server", "drain", "latency", "push"),
    }
    assert (found["messages"], found["concurrency"], found["seconds"]) == (500, 50, 1)
    assert found["server"].keys() == {"version", "throw_away", "round_trip_ms", "commit_ms"}
    assert found["server"]["throw_away"] is False
    assert found["drain"].keys() == {
        "messages_per_second",
        "cpu_us_per_message",
        "transactions_per_message",
    }
    assert found["latency"].keys() == {"messages", "p50_ms", "p95_ms", "p99_ms"}
    assert found["push"].keys() == {"pushes_per_second", "push_many_per_second"}
    assert found["drain"]["messages_per_second"].keys() == {"apalis_pgmq", "bare", "ratio"}
    assert min(numbers(found)) > 0, found
    assert await left(db) == []


async def test_a_server_of_the_environment_is_used(cli, pgmq_url, db):
    done = cli("bench", *SMALL, APALIS_PGMQ_URL=pgmq_url)
    assert done.returncode == 0, done.stderr
    assert "throw-away" not in done.stdout
    assert await left(db) == []


def test_without_a_server_it_starts_one_that_waits_for_the_disk(cli, tmp_path):
    done = cli("bench", *SMALL, "--json", "bench.json")
    assert done.returncode == 0, done.stderr
    assert "Started a throw-away PostgreSQL (fsync on)" in done.stdout
    assert json.loads((tmp_path / "bench.json").read_text())["server"]["throw_away"] is True


def start(url, environment):
    command = [sys.executable, "-m", "apalis_pgmq.cli", "bench", "--url", url, "--messages", "2000"]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("signals", "after"),
    [
        ([signal.SIGINT], "asking the server"),
        ([signal.SIGINT], "draining"),
        ([signal.SIGTERM], "draining"),
        ([signal.SIGINT], "sending 30"),
        ([signal.SIGINT, signal.SIGTERM] * 6, "sending by 16"),
    ],
)
async def test_an_interruption_leaves_no_queue(environment, pgmq_url, db, signals, after, eventually):
    with start(pgmq_url, environment) as process:
        for line in process.stdout:
            if after in line:
                break
        await eventually(lambda: left(db))
        for signum in signals:
            process.send_signal(signum)
            await asyncio.sleep(0.003)
        rest = process.stdout.read()
        assert process.wait(30) == 130
    assert "Traceback" not in rest
    assert "Ratio" not in rest
    assert await left(db) == []


def run_code(code, environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


async def test_a_failure_leaves_no_queue(environment, pgmq_url, db):
    code = (
        "import sys\n"
        "from apalis_pgmq.cli import _bench_drain, main\n"
        "async def idle(*_): pass\n"
        "_bench_drain._loop = idle\n"
        f"sys.argv[1:] = ['bench', '--url', {pgmq_url!r}, '--messages', '500']\n"
        "main()\n"
    )
    done = run_code(code, environment)
    assert done.returncode == 1
    assert "of 500 messages 0 were handled, and 500 were left" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert await left(db) == []


def test_a_server_that_is_away_is_one_line(cli):
    done = cli("bench", "--url", "postgresql://user:hunter2@127.0.0.1:1/db")
    assert done.returncode == 1
    assert "is unavailable" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stdout + done.stderr


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(cli, tmp_path):
    done = cli("bench", "--json", str(tmp_path / "nowhere" / "bench.json"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("round_trip", "commit", "told"),
    [
        (0.1, 0.4, None),
        (2.0, 5.0, None),
        (2.1, 3.0, "The limit of this server is the network: a round trip takes 2.1 ms"),
        (0.1, 5.1, "The limit of this server is the disk: a durable commit takes 5.1 ms"),
        (3.0, 5.5, "The limit of this server is the network: a round trip takes 3.0 ms"),
    ],
)
def test_the_advice_names_what_is_slow(round_trip, commit, told):
    advice = results(round_trip, commit).advice()
    if told is None:
        assert advice is None
    else:
        assert advice.startswith(told)
        assert "; and" not in advice


def test_the_advice_names_both_in_one_line():
    advice = results(3.0, 20.0).advice()
    assert "the network" in advice
    assert "the disk" in advice
    assert "\n" not in advice


def results(round_trip, commit):
    pair = Pair(2, 1)
    return Results(
        messages=1,
        concurrency=1,
        seconds=1,
        throw_away=False,
        server=Server("18.0", round_trip, commit),
        drain=Drain(pair, pair, None),
        latency=Latency(pair, {50: pair}),
        push=Push(pair, pair),
    )


def test_transactions_that_the_server_does_not_tell_are_left_out():
    found = results(1, 1)
    assert found.json()["drain"]["transactions_per_message"] is None
    assert not any("transactions" in str(cell) for cell in found.table().columns[0].cells)


def test_a_pair_of_several_is_the_middle_of_each():
    assert Pair.middle([Pair(1, 10), Pair(3, 20)]) == Pair(2, 15)
    assert Pair(1, 4).ratio == 0.25


async def test_it_loses_patience_when_nothing_happens(monkeypatch):
    monkeypatch.setattr("apalis_pgmq.cli._bench_common._PATIENCE", 0.1)
    with pytest.raises(BenchError, match=r"the worker: nothing happened for 0\.1 s, at 3 of 5"):
        await until(lambda: 3, 5, "the worker")


class TestBareQueue:
    """What the measurements are held against does its job."""

    async def test_drains_all_of_a_queue(self, pgmq_url, queue):
        async with PgMqBackend(pgmq_url, queue, int) as backend:
            await backend.push_many(range(250))
        batches = []
        async with BareQueue(pgmq_url, queue) as bare:
            await bare.settle()
            await bare.drain(batches.append)
        assert batches == [100, 100, 50]
        assert await queue_length(pgmq_url, queue) == 0

    async def test_hears_of_inserts(self, pgmq_url, queue, eventually):
        async with PgMqBackend(pgmq_url, queue, int):
            pass
        heard = []
        async with (
            BareQueue(pgmq_url, queue) as listener,
            BareQueue(pgmq_url, queue) as sender,
            listener.listening(heard.extend),
        ):
            for number in range(25):
                await sender.insert(str(number))
            await eventually(lambda: len(heard) == 25)
        assert heard == [str(number) for number in range(25)]

    async def test_counts_transactions(self, pgmq_url, queue):
        async with BareQueue(pgmq_url, queue) as bare:
            assert await bare.transactions() > 0

    async def test_errors_are_the_backends(self, pgmq_url, queue):
        async with BareQueue(pgmq_url, queue) as bare:
            with pytest.raises(PgMqQueueMissingError):
                await bare.commit()
        with pytest.raises(PgMqError, match="async with"):
            await bare.round_trip()
        with pytest.raises(ConfigError):
            BareQueue("mysql://localhost/db", queue)
