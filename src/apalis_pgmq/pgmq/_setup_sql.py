"""The statements that find out what is there, and make it."""

from __future__ import annotations

from typing import Final

from ._names import SCHEMA, queue_table, quote

NOTIFY_TRIGGER: Final = "apalis_pgmq_notify"
_ANNOUNCES: Final = f"t.tgname = '{NOTIFY_TRIGGER}' AND t.tgenabled IN ('O', 'A')"
"""Whether a trigger ``t`` is ours, and enabled."""

INSPECT: Final = f"""
SELECT
    n.oid IS NOT NULL AS has_schema,
    coalesce(has_schema_privilege(n.oid, 'USAGE'), false) AS has_usage,
    (SELECT extversion FROM pg_extension WHERE extname = 'pgmq') AS version,
    EXISTS (
        SELECT FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
        WHERE c.relnamespace = n.oid AND c.relname = 'message_record' AND a.attname = 'headers'
    ) AS has_headers,
    EXISTS (SELECT FROM pg_class WHERE relnamespace = n.oid AND relname = 'meta') AS has_meta,
    EXISTS (SELECT FROM pg_class WHERE relnamespace = n.oid AND relname = $1::text) AS has_queue,
    EXISTS (
        SELECT FROM pg_class WHERE relnamespace = n.oid AND relname = $1::text AND relkind = 'p'
    ) AS is_partitioned,
    EXISTS (
        SELECT FROM pg_class WHERE relnamespace = n.oid AND relname = $1::text AND relpersistence = 'u'
    ) AS is_unlogged,
    EXISTS (
        SELECT FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
        WHERE c.relnamespace = n.oid AND c.relname = $1::text AND a.attname = 'last_read_at'
          AND NOT a.attisdropped
    ) AS has_last_read_at,
    EXISTS (
        SELECT FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
        WHERE c.relnamespace = n.oid AND c.relname = $1::text AND {_ANNOUNCES}
    ) AS is_announced,
    EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pgmq') AS is_available
FROM (VALUES (1)) AS one LEFT JOIN pg_namespace AS n ON n.nspname = 'pgmq'
"""
"""What of PGMQ is there; ``$1`` is the queue's table, without schema. Reads catalogues only, which
everybody may."""

SETUP_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('apalis-pgmq setup', 0))"

ANNOUNCED: Final = f"""
SELECT c.relname FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
WHERE c.relnamespace = 'pgmq'::regnamespace AND c.relname = ANY ($1::text[]) AND {_ANNOUNCES}
"""
"""Which of these tables announce every insert."""

CREATE_EXTENSION: Final = "CREATE EXTENSION IF NOT EXISTS pgmq CASCADE"
CREATE_QUEUE: Final = "SELECT pgmq.create($1::text)"

NOTIFY_FUNCTION: Final = """
CREATE OR REPLACE FUNCTION pgmq.apalis_pgmq_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.pg_notify(
        'pgmq.' || TG_TABLE_NAME || '.INSERT', pg_catalog.pg_current_xact_id()::pg_catalog.text
    );
    RETURN NULL;
END $$
"""
"""Announces inserts as PGMQ's own trigger does, but once per statement and without waiting for anybody. PGMQ's
updates a row that all senders of a queue share, for each message."""


def notify_trigger(queue: str) -> str:
    """Return the statements that have every insert into a queue announced."""
    table = f"{SCHEMA}.{quote(queue_table(queue))}"
    return f"""
        DROP TRIGGER IF EXISTS {NOTIFY_TRIGGER} ON {table};
        CREATE TRIGGER {NOTIFY_TRIGGER} AFTER INSERT ON {table}
        FOR EACH STATEMENT EXECUTE FUNCTION pgmq.apalis_pgmq_notify()
    """
