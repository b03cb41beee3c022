"""The statements of deduplication."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ._names import literal

if TYPE_CHECKING:
    from ._bodies import Bodies

KEYS: Final = "pgmq.apalis_pgmq_dedup"
"""Which keys are taken in which queue until when, and by which message.

A queue is named by its table's number, which is shown and dumped as its name: one that is dropped takes its keys
along, even if another of that name is made at once.
"""

HAS_KEYS: Final = f"SELECT 1 WHERE to_regclass('{KEYS}') IS NOT NULL"
CREATE_KEYS: Final = f"""
CREATE TABLE IF NOT EXISTS {KEYS} (
    queue regclass NOT NULL,
    key text COLLATE "C" NOT NULL,
    msg_id bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (queue, key)
);
CREATE INDEX IF NOT EXISTS apalis_pgmq_dedup_expires_at_idx ON {KEYS} (expires_at)
"""

# It locks what nobody else holds, and so waits for nobody: a sender that waits for it cannot be waited for in turn.
TIDY_KEYS: Final = f"""
WITH expired AS (
    SELECT queue, key FROM {KEYS} WHERE expires_at <= statement_timestamp()
    ORDER BY expires_at LIMIT $1::int FOR UPDATE SKIP LOCKED
)
DELETE FROM {KEYS} AS d USING expired AS e WHERE d.queue = e.queue AND d.key = e.key RETURNING 1
"""
"""Deletes up to ``$1`` expired keys, of whatever queue."""


def keyed_insert(table: str, announcement: str | None, bodies: Bodies) -> str:
    """Return the statement that stores messages unless their keys are taken.

    ``$1`` payloads, ``$2`` headers, ``$3`` delays, ``$4`` not before when, or null, ``$5`` keys, ``$6`` for how long each
    is taken. Returns each key once, with the id of the message that has it.

    - A key that is seen to be taken is only read. Any other one is inserted; where another sender has done that at
      the same time, PostgreSQL waits for its commit or rollback, and the row tells who was first: the message is
      stored whose id is in it.
    - Keys are inserted in their order, so that two statements with the same ones do not wait for each other.
    - No join among the given ones: the planner takes them for few and would compare each with each. ``IS TRUE`` keeps
      the search among the ids that were taken from becoming one; it is a look-up in a hash table.
    - ``statement_timestamp()`` is one moment for the whole statement, and not that of the transaction's beginning.

    Args:
        table: the queue's, as SQL.
        announcement: what announces the messages, as SQL; None if the queue's trigger does.
        bodies: where large payloads are; that of a refused message is not stored.
    """
    queue = f"{literal(table)}::regclass"
    message, headers = bodies.sent("m.headers")
    is_free = "d.expires_at <= statement_timestamp()"
    return f"""
        WITH asked AS MATERIALIZED (
            SELECT m.*, (
                SELECT d.msg_id FROM {KEYS} AS d
                WHERE d.queue = {queue} AND d.key = m.key AND NOT {is_free}
            ) AS known_id
            FROM (
                SELECT DISTINCT ON (key) *
                FROM unnest(
                    $1::text[], $2::text[], $3::interval[], $4::timestamptz[], $5::text[], $6::interval[]
                ) WITH ORDINALITY AS m (message, headers, delay, at, key, lifetime, position)
                ORDER BY key, position
            ) AS m
        ), fresh AS MATERIALIZED (
            SELECT *, nextval((SELECT pg_get_serial_sequence({literal(table)}, 'msg_id')::regclass)) AS msg_id
            FROM (SELECT * FROM asked WHERE known_id IS NULL ORDER BY position) AS asked
        ), taken AS (
            INSERT INTO {KEYS} AS d (queue, key, msg_id, expires_at)
            SELECT {queue}, key, msg_id, statement_timestamp() + lifetime
            FROM fresh ORDER BY key COLLATE "C"
            ON CONFLICT (queue, key) DO UPDATE SET
                msg_id = CASE WHEN {is_free} THEN excluded.msg_id ELSE d.msg_id END,
                expires_at = CASE WHEN {is_free} THEN excluded.expires_at ELSE d.expires_at END
            RETURNING d.key, d.msg_id
        ), won AS MATERIALIZED (
            SELECT * FROM fresh AS f WHERE (f.msg_id IN (SELECT t.msg_id FROM taken AS t)) IS TRUE
        ), {bodies.given("won")} sent AS (
            INSERT INTO {table} (msg_id, vt, message, headers) OVERRIDING SYSTEM VALUE
            SELECT
                m.msg_id,
                greatest(
                    m.at, now() + m.delay - (cardinality($1::text[]) - m.position) * interval '1 microsecond'
                ),
                {message}, {headers}
            FROM {"given" if bodies else "won"} AS m ORDER BY m.position
        ), told AS MATERIALIZED (SELECT {announcement or "true"})
        SELECT found.* FROM (
            SELECT key, known_id AS msg_id FROM asked WHERE known_id IS NOT NULL
            UNION ALL SELECT key, msg_id FROM taken
        ) AS found, told
    """
