"""``apalis-pgmq setup``, and the command's help."""

import asyncio

import asyncpg
import pytest


async def queues(db, queue):
    rows = await db.fetch("SELECT queue_name FROM pgmq.list_queues() WHERE queue_name LIKE $1", f"{queue}%")
    return sorted(row[0] for row in rows)


async def test_makes_the_queue_and_its_dead_letter_queue(cli, pgmq_url, queue, db):
    done = cli("setup", queue, "--url", pgmq_url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"queue {queue}: created, inserts are announced\nqueue {queue}_dlq: created, inserts are announced\n"
    )
    assert await queues(db, queue) == [queue, f"{queue}_dlq"]

    again = cli("setup", queue, APALIS_PGMQ_URL=pgmq_url)
    assert again.returncode == 0
    assert again.stdout.count("was there already") == 2


async def test_the_dead_letter_queue_can_be_left_out(cli, pgmq_url, queue, db):
    assert cli("setup", queue, "--url", pgmq_url, "--no-dead-letter").returncode == 0
    assert await queues(db, queue) == [queue]


async def has_trigger(db, queue):
    return await db.fetchval(
        "SELECT count(*) FROM pg_trigger WHERE tgname = 'apalis_pgmq_notify' AND tgrelid = $1::regclass",
        f"pgmq.q_{queue}",
    )


async def autovacuum(db, queue):
    return await db.fetchval("SELECT reloptions FROM pg_class WHERE oid = $1::regclass", f"pgmq.q_{queue}")


async def test_a_queue_of_somebody_elses_making_announces_its_inserts_afterwards(cli, pgmq_url, queue, db):
    await db.execute("SELECT pgmq.create($1)", queue)
    assert not await has_trigger(db, queue)
    for _ in range(2):
        done = cli("setup", queue, "--url", pgmq_url, "--no-dead-letter")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"queue {queue}: was there already, inserts are announced\n"
        assert await has_trigger(db, queue)

    heard = asyncio.Event()
    await db.add_listener(f"pgmq.q_{queue}.INSERT", lambda *_: heard.set())
    await db.execute("SELECT pgmq.send($1::text, '1'::jsonb)", queue)
    async with asyncio.timeout(10):
        await heard.wait()


async def test_without_notify_a_queue_is_made_that_announces_nothing(cli, pgmq_url, queue, db):
    done = cli("setup", queue, "--url", pgmq_url, "--no-notify")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"queue {queue}: created\nqueue {queue}_dlq: created\n"
    assert not await has_trigger(db, queue)
    assert not await has_trigger(db, f"{queue}_dlq")


async def test_without_notify_a_trigger_that_is_there_stays(cli, pgmq_url, queue, db):
    assert cli("setup", queue, "--url", pgmq_url).returncode == 0
    done = cli("setup", queue, "--url", pgmq_url, "--no-notify")
    assert done.stdout == f"queue {queue}: was there already\nqueue {queue}_dlq: was there already\n"
    assert await has_trigger(db, queue)


async def test_autovacuum_is_set_only_on_request(cli, pgmq_url, queue, db):
    assert cli("setup", queue, "--url", pgmq_url).returncode == 0
    assert await autovacuum(db, queue) is None

    done = cli("setup", queue, "--url", pgmq_url, "--tune", "--no-dead-letter")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (f"queue {queue}: was there already, inserts are announced, autovacuum is tuned\n")
    assert "autovacuum_vacuum_threshold=10000" in await autovacuum(db, queue)


async def test_ordered_makes_the_queue_ready_and_leaves_its_dead_letters_as_they_are(
    cli, pgmq_url, queue, db
):
    done = cli("setup", queue, "--url", pgmq_url, "--ordered", "--no-notify")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"queue {queue}: created, ready to be worked in order\n")
    tables = await db.fetch(
        "SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'apalis_pgmq_freed' "
        f"AND tgrelid::regclass::text LIKE '%{queue}%'"
    )
    assert [row[0] for row in tables] == [f"pgmq.q_{queue}"]


async def test_the_table_of_deduplication_is_made_on_request(cli, new_database):
    url = await new_database()
    connection = await asyncpg.connect(url)
    try:
        for options, is_there in (((), False), (("--dedup",), True), (("--dedup",), True)):
            assert cli("setup", "emails", "--url", url, *options).returncode == 0
            found = await connection.fetchval("SELECT to_regclass('pgmq.apalis_pgmq_dedup') IS NOT NULL")
            assert found is is_there
    finally:
        await connection.close()


async def test_an_unlogged_queue_has_a_plain_dead_letter_queue(cli, pgmq_url, queue, db):
    assert cli("setup", queue, "--url", pgmq_url, "--unlogged").returncode == 0
    rows = await db.fetch(
        "SELECT relname, relpersistence::text FROM pg_class WHERE relname = ANY ($1) ORDER BY 1",
        [f"q_{queue}", f"q_{queue}_dlq"],
    )
    assert [row[1] for row in rows] == ["u", "p"]


async def test_a_queue_in_partitions_takes_pg_partman(cli, pgmq_url, queue, db):
    done = cli("setup", queue, "--url", pgmq_url, "--partitions", "1d", "7d")
    assert done.returncode == 1
    assert "pg_partman is not in this database" in done.stderr
    assert await queues(db, queue) == []


@pytest.mark.parametrize(
    ("amounts", "code", "text"),
    [
        (("many", "7d"), 2, "'many' must be a number of messages, or a time"),
        (("1d", "100000"), 1, "must both be numbers"),
        (("7d", "1d"), 1, "at least one interval"),
    ],
)
def test_amounts_that_make_no_sense_are_one_line(cli, pgmq_url, queue, amounts, code, text):
    done = cli("setup", queue, "--url", pgmq_url, "--partitions", *amounts)
    assert done.returncode == code
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_installs_pgmq_where_there_is_none(cli, new_database):
    url = await new_database()
    assert cli("setup", "emails", "--url", url).stdout.startswith("queue emails: created")


async def test_the_longest_name_has_a_dead_letter_queue_too(cli, pgmq_url, queue, db):
    name = f"{queue}{'x' * (43 - len(queue))}"
    assert cli("setup", name, "--url", pgmq_url).returncode == 0
    assert await queues(db, queue) == [name, f"{name}_dlq"]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("postgresql://user:hunter2@127.0.0.1:1/db", "is unavailable"),
        ("postgresql://user:hunter2@no-such-host.invalid/db", "is unavailable"),
        ("mysql://user:hunter2@localhost/db", "must begin with postgres:// or postgresql://"),
        ("user:hunter2@localhost", "must begin with postgres:// or postgresql://"),
    ],
)
def test_a_bad_url_is_one_line_without_the_password(cli, url, text):
    done = cli("setup", "emails", "--url", url)
    assert done.returncode == 1
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stdout + done.stderr


def test_a_bad_name_is_one_line(cli, pgmq_url):
    done = cli("setup", "x" * 44, "--url", pgmq_url)
    assert done.returncode == 1
    assert "at most 43 are allowed" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_url_it_is_called_wrongly(cli):
    done = cli("setup", "emails")
    assert done.returncode == 2
    assert "--url" in done.stderr


@pytest.mark.parametrize("command", ["demo", "bench", "run", "setup", "queues", "purge", "drop"])
def test_help_names_the_exit_codes_and_keeps_secrets(cli, command):
    done = cli(command, "--help", APALIS_PGMQ_URL="postgresql://user:hunter2@localhost/db")
    assert done.returncode == 0
    assert "Exit codes: 0 fine" in done.stdout
    assert "hunter2" not in done.stdout


def test_without_a_command_help_is_shown(cli):
    done = cli()
    assert done.returncode == 0
    assert all(
        command in done.stdout
        for command in ("demo", "bench", "run", "setup", "queues", "purge", "drop", "--version")
    )


def test_version(cli):
    from apalis_pgmq._version import __version__

    assert cli("--version").stdout == f"apalis-pgmq {__version__}\n"
