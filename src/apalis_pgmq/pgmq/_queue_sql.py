"""The statements about queues as a whole, and about topics."""

from __future__ import annotations

from typing import Final

from ._names import SCHEMA, queue_table, quote

CREATE_UNLOGGED: Final = "SELECT pgmq.create_unlogged($1::text)"
CREATE_PARTITIONED: Final = "SELECT pgmq.create_partitioned($1::text, $2::text, $3::text)"
HAS_PARTMAN: Final = "SELECT FROM pg_extension WHERE extname = 'pg_partman'"
PARTITIONS: Final = "SELECT relid::regclass::text FROM pg_partition_tree($1::text::regclass) WHERE isleaf"
"""The partitions of a table, as SQL names; none if it is not partitioned."""
DROP_QUEUE: Final = "SELECT pgmq.drop_queue($1::text)"
PURGE_QUEUE: Final = "SELECT pgmq.purge_queue($1::text)"
LIST_QUEUES: Final = """
SELECT queue_name, is_partitioned, is_unlogged, created_at FROM pgmq.list_queues() ORDER BY queue_name
"""
_METRICS: Final = """
SELECT queue_name, queue_length, queue_visible_length, newest_msg_age_sec, oldest_msg_age_sec, total_messages, scrape_time
"""
METRICS: Final = f"{_METRICS} FROM pgmq.metrics($1::text)"
METRICS_OF_ALL: Final = f"{_METRICS} FROM pgmq.metrics_all() ORDER BY queue_name"

SEND_TOPIC: Final = """
SELECT queue_name, msg_id
FROM pgmq.send_batch_topic($1::text, $2::text[]::jsonb[], $3::text[]::jsonb[], now() + $4::interval)
"""
BIND_TOPIC: Final = "SELECT pgmq.bind_topic($1::text, $2::text)"
UNBIND_TOPIC: Final = "SELECT pgmq.unbind_topic($1::text, $2::text)"
TOPIC_BINDINGS: Final = """
SELECT pattern, queue_name, bound_at FROM pgmq.list_topic_bindings()
WHERE $1::text IS NULL OR queue_name = $1::text ORDER BY pattern, queue_name
"""
TOPIC_ROUTES: Final = "SELECT DISTINCT queue_name FROM pgmq.test_routing($1::text) ORDER BY queue_name"


def autovacuum(table: str) -> str:
    """Return the statement that has a table, given as SQL, vacuumed as often as a queue needs it.

    PostgreSQL's defaults wait for a fifth of a table to be dead, and for a pause after each few pages.
    """
    return f"""
        ALTER TABLE {table} SET (
            autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,
            autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000,
            autovacuum_vacuum_cost_delay = 0
        )
    """


def partition_indexes(queue: str) -> str:
    """Return the statements that give a partitioned queue the indexes that PGMQ gives to all others only."""
    name = queue_table(queue)
    table = f"{SCHEMA}.{quote(name)}"
    return f"""
        CREATE INDEX IF NOT EXISTS {quote(f"{name}_vt_idx")} ON {table} (vt);
        CREATE INDEX IF NOT EXISTS {quote(f"{name}_msg_id_idx")} ON {table} (msg_id)
    """
