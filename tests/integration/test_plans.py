"""The hot statements find their rows by an index, however large, bloated or unanalyzed the queue is."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from apalis_pgmq.pgmq._pool import _CLAIMING, _PLANNING
from apalis_pgmq.pgmq._sql import Statements

FENCE = "'{1, 2}', '{1, 1}', '{1, 1}', ARRAY[now()]::timestamptz[]"
STATEMENTS = {
    "claim": "100, interval '30 s', '-infinity'::timestamptz",
    "claim_rest": "100, interval '30 s', '-infinity'::timestamptz, 30::float8",
    "claim_telling": "100, interval '30 s', '-infinity'::timestamptz, 30::float8, 'talk'::text, true",
    "late": "now()",
    "extend": f"{FENCE}, ARRAY[now(), now()]::timestamptz[]",
    "delete": FENCE,
    "archive": FENCE,
    "give_back": f"{FENCE}, ARRAY[interval '1 s', interval '1 s'], ARRAY[1, 1]::int[]",
    "present": "ARRAY[1, 2]::bigint[]",
    "insert_part": "'{}', NULL, interval '0', 1",
    "insert": "ARRAY['{}', '{}'], ARRAY[NULL, NULL]::text[], ARRAY[interval '0', interval '0']",
}
CLAIMING = ("claim", "claim_rest", "claim_telling", "late")
MOST_BUFFERS = 3000
"""Of 8 KiB each, for a claim of 100."""

VISIBLE = "now() - interval '1 h' + n * interval '1 ms'"
DELAYED = "now() + interval '1 h' + n * interval '1 ms'"


class Planned:
    """A connection such as the workers have, with the statements prepared."""

    def __init__(self, connection: asyncpg.Connection, queue: str) -> None:
        self.connection = connection
        self.table = f"q_{queue}"

    async def fill(self, rows: int, vt: str) -> None:
        await self.connection.execute(
            f"INSERT INTO pgmq.{self.table} (vt, message) "
            f"SELECT {vt}, '{{}}'::jsonb FROM generate_series(1, {rows}) AS n"
        )

    async def plan(self, name: str) -> dict[str, Any]:
        text = await self.connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE {name}({STATEMENTS[name]})")
        return json.loads(text)[0]["Plan"]

    async def buffers(self, since: str) -> tuple[int, int]:
        """Claim 100, and take it back; return how many buffers it touched, and how many it claimed."""
        transaction = self.connection.transaction()
        await transaction.start()
        try:
            text = await self.connection.fetchval(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE claim(100, interval '30 s', {since})"
            )
        finally:
            await transaction.rollback()
        plan = json.loads(text)[0]["Plan"]
        [lease] = [node for node in nodes(plan) if node["Node Type"] == "ModifyTable"]
        return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], lease["Actual Rows"]

    async def assert_all_by_index(self) -> None:
        for name in STATEMENTS:
            for node in nodes(await self.plan(name)):
                kind, relation = node["Node Type"], node.get("Relation Name")
                assert kind not in ("Seq Scan", "Bitmap Heap Scan"), (name, relation)
                if name in CLAIMING:
                    assert kind not in ("Sort", "Incremental Sort"), (name, node)
                    if relation == self.table and kind.endswith("Scan"):
                        assert node["Index Name"] in (f"{self.table}_vt_idx", f"{self.table}_pkey"), node
            if name in CLAIMING:
                used = {node.get("Index Name") for node in nodes(await self.plan(name))}
                assert f"{self.table}_vt_idx" in used, name


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


@pytest.fixture(params=["claiming", "settling"])
def settings(request: pytest.FixtureRequest) -> dict[str, str]:
    return {"claiming": _CLAIMING, "settling": _PLANNING}[request.param]


@asynccontextmanager
async def _planned(
    url: str, db: asyncpg.Connection, queue: str, settings: dict[str, str]
) -> AsyncIterator[Planned]:
    await db.execute("SELECT pgmq.create($1::text)", queue)
    # What happens by itself on a server is said here instead.
    await db.execute(f"ALTER TABLE pgmq.q_{queue} SET (autovacuum_enabled = off)")
    statements = Statements.of(queue, f"{queue}_dlq", has_last_read_at=True, is_announced=False)
    connection = await asyncpg.connect(url)
    try:
        for name, value in settings.items():
            await connection.execute("SELECT set_config($1, $2, false)", name, value)
        for name in STATEMENTS:
            await connection.execute(f"PREPARE {name} AS {getattr(statements, name)}")
        yield Planned(connection, queue)
    finally:
        await connection.close()
        await db.execute("SELECT pgmq.drop_queue($1::text)", queue)


@pytest.fixture
async def planned(
    pgmq_url: str, db: asyncpg.Connection, queue: str, settings: dict[str, str]
) -> AsyncIterator[Planned]:
    async with _planned(pgmq_url, db, queue, settings) as one:
        yield one


@pytest.fixture
async def claiming(pgmq_url: str, db: asyncpg.Connection, queue: str) -> AsyncIterator[Planned]:
    async with _planned(pgmq_url, db, queue, _CLAIMING) as one:
        yield one


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("rows", [0, 1000])
async def test_a_small_queue_is_never_read_whole(
    planned: Planned, db: asyncpg.Connection, *, rows: int, analyzed: bool
) -> None:
    await planned.fill(rows, VISIBLE)
    if analyzed:
        await db.execute(f"ANALYZE pgmq.{planned.table}")
    await planned.assert_all_by_index()


async def test_nor_is_a_large_one_full_of_delayed_and_dead_messages(
    planned: Planned, db: asyncpg.Connection
) -> None:
    await planned.fill(500_000, VISIBLE)
    await planned.fill(500_000, DELAYED)
    await planned.assert_all_by_index()
    await db.execute(f"ANALYZE pgmq.{planned.table}")
    await planned.assert_all_by_index()
    await db.execute(f"DELETE FROM pgmq.{planned.table} WHERE msg_id % 2 = 0")
    await planned.assert_all_by_index()
    await db.execute(f"ANALYZE pgmq.{planned.table}")
    await planned.assert_all_by_index()


async def test_a_queue_that_was_emptied_since_it_was_analyzed_is_not_read_whole(
    planned: Planned, db: asyncpg.Connection
) -> None:
    await db.execute(f"ANALYZE pgmq.{planned.table}")
    await planned.fill(20_000, VISIBLE)
    await planned.assert_all_by_index()
    await db.execute(f"DELETE FROM pgmq.{planned.table}")
    await db.execute(f"ANALYZE pgmq.{planned.table}")
    await planned.assert_all_by_index()


@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_claim_reads_no_delayed_messages(
    claiming: Planned, db: asyncpg.Connection, *, analyzed: bool
) -> None:
    await claiming.fill(100_000, DELAYED)
    await claiming.fill(1000, VISIBLE)
    if analyzed:
        await db.execute(f"ANALYZE pgmq.{claiming.table}")
    touched, claimed = await claiming.buffers("'-infinity'::timestamptz")
    assert claimed == 100
    assert touched < MOST_BUFFERS


async def test_a_claim_steps_over_no_dead_messages_before_its_beginning(
    claiming: Planned, pgmq_url: str, db: asyncpg.Connection
) -> None:
    """While another transaction keeps them from being cleared away."""
    # In another order than that of the table, as retries are, and what many have sent.
    await claiming.fill(100_000, "now() - interval '1 h' + n * 7919 % 100000 * interval '1 ms'")
    snapshot = await asyncpg.connect(pgmq_url)
    try:
        await snapshot.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        assert await snapshot.fetchval(f"SELECT count(*) FROM pgmq.{claiming.table}") == 100_000
        await db.execute(f"DELETE FROM pgmq.{claiming.table}")
        await claiming.fill(1000, "now() - interval '1 min' + n * interval '1 ms'")
        unbounded, claimed = await claiming.buffers("'-infinity'::timestamptz")
        assert claimed == 100
        assert unbounded > 10 * MOST_BUFFERS
        bounded, claimed = await claiming.buffers("now() - interval '2 min'")
        assert claimed == 100
        assert bounded < MOST_BUFFERS
    finally:
        await snapshot.close()
