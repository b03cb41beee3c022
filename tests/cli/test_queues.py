"""``apalis-pgmq queues``, ``purge`` and ``drop``."""

import json

import pytest

from apalis_pgmq.pgmq import PgMqBackend

from .conftest import queue_length


@pytest.fixture
async def filled(pgmq_url, queue):
    """A queue of three messages, one of them delayed."""
    async with PgMqBackend(pgmq_url, queue, int) as backend:
        await backend.push_many([1, 2])
        await backend.push(3, delay=3600)
    return queue


def test_queues_are_listed_with_their_figures(cli, pgmq_url, filled):
    done = cli("queues", "--url", pgmq_url)
    assert done.returncode == 0, done.stderr
    heading, *lines = done.stdout.splitlines()
    assert heading.split() == ["queue", "kind", "messages", "visible", "oldest", "newest", "sent", "ever"]
    [line] = [line.split() for line in lines if line.startswith(f"{filled} ")]
    assert line[:4] == [filled, "plain", "3", "2"]
    assert line[-1] == "3"


def test_or_as_json(cli, pgmq_url, filled):
    done = cli("queues", "--json", APALIS_PGMQ_URL=pgmq_url)
    [found] = [each for each in json.loads(done.stdout) if each["queue"] == filled]
    assert (found["kind"], found["length"], found["visible_length"]) == ("plain", 3, 2)
    assert 0 <= found["newest_age"] <= found["oldest_age"] < 60


async def test_where_there_is_no_pgmq_there_are_no_queues(cli, new_database):
    url = await new_database()
    assert cli("queues", "--url", url).stdout == "there are no queues\n"
    assert json.loads(cli("queues", "--url", url, "--json").stdout) == []


async def test_a_queue_is_purged_without_asking_on_request(cli, pgmq_url, filled):
    done = cli("purge", filled, "--url", pgmq_url, "--yes")
    assert done.stdout == f"queue {filled}: 3 messages deleted\n"
    assert await queue_length(pgmq_url, filled) == 0


@pytest.mark.parametrize(("answer", "code", "left"), [("n\n", 2, 3), ("", 2, 3), ("y\n", 0, 0)])
async def test_purging_asks_first(cli, pgmq_url, filled, answer, code, left):
    done = cli("purge", filled, "--url", pgmq_url, answer=answer)
    assert done.returncode == code
    assert f"Delete all 3 messages of queue {filled}?" in done.stderr
    assert "Traceback" not in done.stderr
    assert await queue_length(pgmq_url, filled) == left


async def test_a_queue_is_dropped(cli, pgmq_url, filled, db):
    assert cli("drop", filled, "--url", pgmq_url, answer="").returncode == 2
    assert await queue_length(pgmq_url, filled) == 3
    assert cli("drop", filled, "--url", pgmq_url, "-y").stdout == f"queue {filled}: dropped\n"
    assert await db.fetchval("SELECT to_regclass($1)", f"pgmq.a_{filled}") is None


@pytest.mark.parametrize("command", ["purge", "drop"])
def test_a_queue_that_is_not_there_is_one_line(cli, pgmq_url, queue, command):
    done = cli(command, queue, "--url", pgmq_url, "--yes")
    assert done.returncode == 1
    assert f"queue '{queue}' is not there" in done.stderr
    assert len(done.stderr.splitlines()) == 1
