"""Every statement that is sent, in one place.

They go straight to PGMQ's tables: ``pgmq.q_<queue>`` and ``pgmq.a_<queue>``. Every parameter is cast, since
PGMQ's functions are overloaded, and JSON travels as text, so that a type codec that a program has set on
its own connections changes nothing.

A *fence* is three arrays, ``msg_id``, ``read_ct`` and ``vt``: a statement touches a message only while all
three match, which they do only for whoever claimed it last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SCHEMA: Final = "pgmq"

INSPECT: Final = """
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
        SELECT FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
        WHERE c.relnamespace = n.oid AND c.relname = $1::text AND a.attname = 'last_read_at'
          AND NOT a.attisdropped
    ) AS has_last_read_at,
    EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pgmq') AS is_available
FROM (VALUES (1)) AS one LEFT JOIN pg_namespace AS n ON n.nspname = 'pgmq'
"""
"""What of PGMQ is there; ``$1`` is the queue's table, without schema. Reads catalogues only, which
everybody may."""

SETUP_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('apalis-pgmq setup', 0))"
SESSION: Final = "SELECT state, state_change FROM pg_stat_activity WHERE pid = $1::int"
"""What a session is at, by its process id; whose it is may see it."""
CREATE_EXTENSION: Final = "CREATE EXTENSION IF NOT EXISTS pgmq CASCADE"
CREATE_QUEUE: Final = "SELECT pgmq.create($1::text)"

_FENCE: Final = "m.msg_id = f.msg_id AND m.read_ct = f.read_ct AND m.vt = f.vt"
_FENCE_ARRAYS: Final = "$1::bigint[], $2::int[], $3::timestamptz[]"


def quote(identifier: str) -> str:
    """Return an identifier as SQL. The one place where names become SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def queue_table(queue: str) -> str:
    """Return the name of a queue's table, without schema; PGMQ lower-cases it."""
    return f"q_{queue}".lower()


def archive_table(queue: str) -> str:
    """Return the name of a queue's archive table, without schema; PGMQ lower-cases it."""
    return f"a_{queue}".lower()


@dataclass(frozen=True, slots=True)
class Statements:
    """The statements for one queue.

    Attributes:
        claim: ``$1`` how many, ``$2`` for how long; oldest visibility first.
        extend: fence, ``$4`` the new ``vt`` of each.
        delete: fence.
        archive: fence.
        give_back: fence, ``$4`` the delay of each, ``$5`` what to take off its read count.
        bury: fence, ``$4`` for each an object of headers to add; moves to the dead-letter queue.
        bury_in_archive: the same, moves to the archive.
        delete_last, archive_last: fence, ``$4`` milliseconds; as the last statement of a transaction whose commit
            must follow within that time.
        present: ``$1`` ids.
        insert: ``$1`` payloads, ``$2`` headers, ``$3`` delays; returns ids in that order when sorted.
        dead_letters: of the dead-letter queue, ``$1`` after which id, ``$2`` how many; oldest first.
        newest_dead_letter: the greatest id of the dead-letter queue.
        redrive: ``$1`` after which id, ``$2`` up to which, ``$3`` how many; moves back from the dead-letter
            queue what nobody holds, oldest first; returns the ids that they had there.
        redrive_ids: the same for ``$1`` ids.
        purge_dead_letters: ``$1``, ``$2``, ``$3`` as `redrive`; deletes from the dead-letter queue.
    """

    claim: str
    extend: str
    delete: str
    archive: str
    give_back: str
    bury: str
    bury_in_archive: str
    delete_last: str
    archive_last: str
    present: str
    insert: str
    dead_letters: str
    newest_dead_letter: str
    redrive: str
    redrive_ids: str
    purge_dead_letters: str

    @classmethod
    def of(cls, queue: str, dead_letter_queue: str, *, has_last_read_at: bool) -> Statements:
        """Return the statements for a queue.

        Args:
            queue: its name.
            dead_letter_queue: the name of the queue for what is given up.
            has_last_read_at: whether its tables have that column (PGMQ 1.10 and later).
        """
        q = f"{SCHEMA}.{quote(queue_table(queue))}"
        a = f"{SCHEMA}.{quote(archive_table(queue))}"
        dead = f"{SCHEMA}.{quote(queue_table(dead_letter_queue))}"
        read_at = ", last_read_at = now()" if has_last_read_at else ""
        columns = ["msg_id", "read_ct", "enqueued_at", "vt", "message", "headers"]
        if has_last_read_at:
            columns.append("last_read_at")
        kept = ", ".join(columns)
        # Others may have stored anything as headers; only an object can take more.
        with_reason = """
            CASE WHEN jsonb_typeof(m.headers) = 'object' THEN m.headers ELSE '{}' END
            || jsonb_build_object('x-dead-letter-enqueued-at', m.enqueued_at) || f.added::jsonb
        """
        kept_of_m = ", ".join(f"m.{column}" for column in columns)
        page = "msg_id > $1::bigint AND msg_id <= $2::bigint"
        # Its own headers, less what burying added. What is no number counts as none.
        redriven = """
            coalesce((
                SELECT jsonb_object_agg(h.key, h.value)
                FROM jsonb_each(CASE WHEN jsonb_typeof(m.headers) = 'object' THEN m.headers ELSE '{}' END) AS h
                WHERE NOT starts_with(h.key, 'x-dead-letter-')
            ), '{}') || jsonb_build_object('x-redrive-count', 1 + CASE
                WHEN m.headers->>'x-redrive-count' ~ '^[0-9]{1,18}$'
                THEN (m.headers->>'x-redrive-count')::bigint ELSE 0
            END)
        """

        def redrive(wanted: str) -> str:
            # What a consumer of the dead-letter queue holds is left to it.
            return f"""
                WITH next AS (
                    SELECT msg_id FROM {dead} WHERE vt <= now() AND {wanted} FOR UPDATE SKIP LOCKED
                ), back AS (
                    DELETE FROM {dead} AS m USING next WHERE m.msg_id = next.msg_id
                    RETURNING m.msg_id, m.message, {redriven} AS headers
                ), moved AS (
                    INSERT INTO {q} (vt, message, headers)
                    SELECT now(), message, headers FROM back ORDER BY msg_id
                )
                SELECT msg_id FROM back
            """

        delete = f"""
            DELETE FROM {q} AS m USING unnest({_FENCE_ARRAYS}) AS f (msg_id, read_ct, vt)
            WHERE {_FENCE} RETURNING m.msg_id
        """
        gone = f"""
            gone AS (
                DELETE FROM {q} AS m USING unnest({_FENCE_ARRAYS}) AS f (msg_id, read_ct, vt)
                WHERE {_FENCE} RETURNING {kept_of_m}
            )
        """
        into_archive = f"INSERT INTO {a} ({kept}) SELECT {kept} FROM gone RETURNING msg_id"
        # From here on the message's row is locked. Were the client's socket to go silent now, the lock would
        # stay for as long as the server takes to notice; so it is told how long it may wait for the commit.
        bound = """
            bound AS MATERIALIZED (
                SELECT set_config('idle_in_transaction_session_timeout', $4::text, true)
            )
        """

        return cls(
            # Ordered by vt alone: the index on it serves both the filter and the order, however many
            # delayed messages there are. `now()` is stable, as an index condition must be.
            claim=f"""
                WITH next AS (
                    SELECT msg_id FROM {q}
                    WHERE vt <= now() ORDER BY vt LIMIT $1::int FOR UPDATE SKIP LOCKED
                )
                UPDATE {q} AS m SET vt = now() + $2::interval, read_ct = m.read_ct + 1{read_at}
                FROM next WHERE m.msg_id = next.msg_id
                RETURNING m.msg_id, m.read_ct, m.vt, m.message::text, m.headers::text, m.enqueued_at
            """,
            # A lease that would be over already, since our clock stood still, is no lease.
            extend=f"""
                UPDATE {q} AS m SET vt = f.new_vt
                FROM unnest({_FENCE_ARRAYS}, $4::timestamptz[]) AS f (msg_id, read_ct, vt, new_vt)
                WHERE {_FENCE} AND f.new_vt > now() RETURNING m.msg_id
            """,
            delete=delete,
            archive=f"WITH {gone} {into_archive}",
            delete_last=f"WITH {bound}, removed AS ({delete}) SELECT msg_id FROM removed, bound",
            archive_last=f"WITH {bound}, {gone}, removed AS ({into_archive}) SELECT msg_id FROM removed, bound",
            give_back=f"""
                UPDATE {q} AS m SET vt = now() + f.delay, read_ct = m.read_ct - f.refund
                FROM unnest({_FENCE_ARRAYS}, $4::interval[], $5::int[])
                    AS f (msg_id, read_ct, vt, delay, refund)
                WHERE {_FENCE} RETURNING m.msg_id
            """,
            bury=f"""
                WITH dead AS (
                    DELETE FROM {q} AS m
                    USING unnest({_FENCE_ARRAYS}, $4::text[]) AS f (msg_id, read_ct, vt, added)
                    WHERE {_FENCE}
                    RETURNING m.msg_id, m.message, {with_reason} AS headers
                ), moved AS (
                    INSERT INTO {dead} (vt, message, headers)
                    SELECT now(), message, headers FROM dead ORDER BY msg_id
                )
                SELECT msg_id FROM dead
            """,
            bury_in_archive=f"""
                WITH dead AS (
                    DELETE FROM {q} AS m
                    USING unnest({_FENCE_ARRAYS}, $4::text[]) AS f (msg_id, read_ct, vt, added)
                    WHERE {_FENCE}
                    RETURNING {kept_of_m.replace("m.headers", with_reason + "AS headers")}
                )
                INSERT INTO {a} ({kept}) SELECT {kept} FROM dead RETURNING msg_id
            """,
            # Waits for a statement of ours that may still be running although its connection is gone.
            present=f"SELECT msg_id FROM {q} WHERE msg_id = ANY ($1::bigint[]) FOR KEY SHARE",
            insert=f"""
                INSERT INTO {q} (vt, message, headers)
                SELECT now() + m.delay, m.message::jsonb, m.headers::jsonb
                FROM unnest($1::text[], $2::text[], $3::interval[])
                    WITH ORDINALITY AS m (message, headers, delay, position)
                ORDER BY m.position
                RETURNING msg_id
            """,
            dead_letters=f"""
                SELECT msg_id, message::text, headers::text FROM {dead}
                WHERE msg_id > $1::bigint ORDER BY msg_id LIMIT $2::bigint
            """,
            newest_dead_letter=f"SELECT max(msg_id) FROM {dead}",
            redrive=redrive(f"{page} ORDER BY msg_id LIMIT $3::int"),
            redrive_ids=redrive("msg_id = ANY ($1::bigint[]) ORDER BY msg_id"),
            purge_dead_letters=f"""
                WITH next AS (
                    SELECT msg_id FROM {dead} WHERE {page}
                    ORDER BY msg_id LIMIT $3::int FOR UPDATE SKIP LOCKED
                )
                DELETE FROM {dead} AS m USING next WHERE m.msg_id = next.msg_id RETURNING m.msg_id
            """,
        )
