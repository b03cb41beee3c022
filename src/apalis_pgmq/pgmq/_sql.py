"""The statements that workers and senders send.

They go straight to PGMQ's tables: ``pgmq.q_<queue>`` and ``pgmq.a_<queue>``. Every parameter is cast, since
PGMQ's functions are overloaded, and JSON travels as text, so that a type codec that a program has set on
its own connections changes nothing.

A *fence* names messages by ``msg_id``, ``read_ct`` and ``vt``: a statement touches a message only while all
three match, which they do only for whoever claimed it last. Messages that were claimed together have the same ``vt``:
it travels once, and each message has a number of its own for it. The other parts are arrays in their text form:
asyncpg looks at each element of a list for a long time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ._bodies import Bodies
from ._keyed_sql import keyed_insert
from ._names import SCHEMA, archive_table, insert_channel, literal, queue_table, quote

SESSION: Final = "SELECT state, state_change FROM pg_stat_activity WHERE pid = $1::int"
"""What a session is at, by its process id; whose it is may see it."""
RANK: Final = """
WITH rank AS MATERIALIZED (
    SELECT (
        SELECT n FROM generate_series(0, $2::int - 1) AS n
        WHERE CASE WHEN n = ANY ($3::int[]) THEN false ELSE pg_try_advisory_lock($1::int, n) END
        LIMIT 1
    ) AS n
), told AS MATERIALIZED (
    SELECT pg_notify($4::text, 'here') FROM rank WHERE n IS DISTINCT FROM 0
)
SELECT n, (SELECT count(*) FROM told) FROM rank
"""
"""Take the lowest free number below ``$2``, as an advisory lock of the session, which holds ``$3`` already; null: there
is none. All but the first say that they are here: it would hear itself, and take itself for company."""
UNRANK: Final = "SELECT pg_advisory_unlock($1::int, $2::int)"

HAVE_LOOK: Final = "SELECT pg_notify($1::text, 'look ' || pg_current_xact_id()::text)"
"""Have the other workers of a queue look for messages, on their channel."""
_FENCE: Final = "m.msg_id = f.msg_id AND m.read_ct = f.read_ct AND m.vt = ($4::timestamptz[])[f.vt_number]"
_FENCE_ARRAYS: Final = "$1::text::bigint[], $2::text::int[], $3::text::int[]"
_FENCE_COLUMNS: Final = "msg_id, read_ct, vt_number"
_LARGE: Final = 64 * 1024
"""Bytes of a message from which on it is returned in a row of its own: a value of PostgreSQL's is 1 GiB at most."""


@dataclass(frozen=True, slots=True)
class Statements:
    """The statements for one queue.

    Attributes:
        claim: ``$1`` how many, ``$2`` for how long, ``$3`` visible since when; oldest visibility first. Returns
            arrays, each message's part at the same place in all: as a row of each it would cost the driver
            several times as much. Then the ``vt`` of all, and since when the last one was visible. Large
            messages have a row each.
        claim_rest: the same for few messages, a row each, which the server has done sooner; one row at least, and
            in further columns in how many seconds the next message is due, looked for ``$4`` seconds ahead, the
            server's clock, and the seconds that it took.
        claim_telling: the same, and tells the others, on the channel ``$5``, what a `Turn` wants to know: if there are
            fewer messages than asked for and it has looked from the beginning, and, with ``$6``, if there are not.
        late: since when a message has been visible of which that is so since ``$1`` and before ``$2``; null: there is none.
            Returns the server's clock and the seconds that it took as well.
        extend: fence, ``$5`` the new ``vt`` of each.
        delete: fence, ``$1`` to ``$4``; like all of these it returns an array of the ids that it touched.
        archive: fence.
        give_back: fence, ``$5`` the delay of each, ``$6`` what to take off its read count. Announces them, as
            no trigger does.
        bury: fence, ``$5`` for each an object of headers to add; moves to the dead-letter queue.
        bury_in_archive: the same, moves to the archive.
        delete_last, archive_last: fence, ``$5`` milliseconds; as the last statement of a transaction whose commit
            must follow within that time.
        present: ``$1`` ids.
        insert: ``$1`` payloads, ``$2`` headers, ``$3`` delays, ``$4`` not before when, or null; returns an array of ids,
            in that order when sorted. Announces the messages, unless the queue's trigger does.
        insert_part: of a transaction that sends many: ``$1`` payloads, a line each, ``$2`` their headers, ``$3`` their
            delay, ``$4`` how many are not sent yet, with these; otherwise as `insert`.
        insert_part_each: the same, ``$2`` the headers of each, a line each, empty for none.
        insert_keyed: see `keyed_insert`. Announces as `insert`.
        dead_letters: of the dead-letter queue, ``$1`` after which id, ``$2`` how many; oldest first.
        newest_dead_letter: the greatest id of the dead-letter queue.
        redrive: ``$1`` after which id, ``$2`` up to which, ``$3`` how many; moves back from the dead-letter
            queue what nobody holds, oldest first; returns the ids that they had there.
        redrive_ids: the same for ``$1`` ids.
        purge_dead_letters: ``$1``, ``$2``, ``$3`` as `redrive`; deletes from the dead-letter queue.
    """

    claim: str
    claim_rest: str
    claim_telling: str
    late: str
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
    insert_part: str
    insert_part_each: str
    insert_keyed: str
    dead_letters: str
    newest_dead_letter: str
    redrive: str
    redrive_ids: str
    purge_dead_letters: str

    @classmethod
    def of(
        cls,
        queue: str,
        dead_letter_queue: str,
        *,
        has_last_read_at: bool,
        is_announced: bool,
        bodies: Bodies | None = None,
    ) -> Statements:
        """Return the statements for a queue.

        Args:
            queue: its name.
            dead_letter_queue: the name of the queue for what is given up.
            has_last_read_at: whether its tables have that column (PGMQ 1.10 and later).
            is_announced: whether a trigger announces every insert.
            bodies: where its large payloads are; None: in the queue.
        """
        bodies = Bodies() if bodies is None else bodies
        q = f"{SCHEMA}.{quote(queue_table(queue))}"
        a = f"{SCHEMA}.{quote(archive_table(queue))}"
        dead = f"{SCHEMA}.{quote(queue_table(dead_letter_queue))}"
        channel = insert_channel(queue)
        announcement = (
            "true" if channel is None else f"pg_notify({literal(channel)}, pg_current_xact_id()::text)"
        )
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

        # Ordered by vt alone: the index on it serves both the filter and the order, however many delayed
        # messages there are. `now()` is stable, as an index condition must be.
        next_ones = f"""
            next AS (
                SELECT msg_id, vt FROM {q} WHERE vt >= $3::timestamptz AND vt <= now()
                ORDER BY vt LIMIT $1::int FOR UPDATE SKIP LOCKED
            )
        """
        lease = f"""
            UPDATE {q} AS m SET vt = now() + $2::interval, read_ct = m.read_ct + 1{read_at}
            FROM next WHERE m.msg_id = next.msg_id
            RETURNING m.msg_id, m.read_ct, m.vt, {bodies.payload}::text AS message,
                m.headers::text AS headers, m.enqueued_at, next.vt AS since
        """

        taken = "now() AS clock, extract(epoch FROM clock_timestamp() - now())::float8 AS took"
        due = f"""
            SELECT extract(epoch FROM vt - clock_timestamp())::float8 FROM {q}
            WHERE vt > now() AND vt <= now() + make_interval(secs => $4::float8)
            ORDER BY vt LIMIT 1
        """
        claimed = f"""
            SELECT array_agg(msg_id) AS ids, array_agg(read_ct) AS read_cts, array_agg(message) AS messages,
                array_agg(headers) AS headers, array_agg(enqueued_at) AS enqueued_ats, max(vt) AS vt,
                max(since) AS since
            FROM claimed
            GROUP BY CASE
                WHEN coalesce(octet_length(message), 0) + coalesce(octet_length(headers), 0) > {_LARGE}
                THEN msg_id
            END
        """
        gone = f"""
            gone AS (
                DELETE FROM {q} AS m USING unnest({_FENCE_ARRAYS}) AS f ({_FENCE_COLUMNS})
                WHERE {_FENCE} RETURNING {kept_of_m}
            )
        """
        deleted = f"""
            deleted AS (
                DELETE FROM {q} AS m USING unnest({_FENCE_ARRAYS}) AS f ({_FENCE_COLUMNS})
                WHERE {_FENCE} RETURNING m.msg_id{bodies.check}
            ){bodies.dropped("deleted")}
        """
        archived = f"{gone}, archived AS (INSERT INTO {a} ({kept}) SELECT {kept} FROM gone RETURNING msg_id)"

        # The messages of one statement are visible one microsecond after the other, the last one now: so they are
        # claimed in their order, and a claim can begin in the midst of them.
        def insert(headers: str, source: str, vt: str, order: str = "") -> str:
            message, headers = bodies.sent(headers)
            told = "" if is_announced else f", told AS MATERIALIZED (SELECT {announcement})"
            return f"""
                WITH {bodies.given(source)} sent AS (
                    INSERT INTO {q} (vt, message, headers)
                    SELECT {vt}, {message}, {headers} FROM {"given AS m" if bodies else source}
                    {order}
                    RETURNING msg_id
                ){told}
                SELECT array_agg(msg_id) FROM sent{"" if is_announced else ", told"}
            """

        ordinality = "WITH ORDINALITY AS m"
        of_part = "now() + $3::interval - ($4::int - m.position) * interval '1 microsecond'"
        lines = "string_to_array($1::text, E'\n')"

        # From here on the message's row is locked. Were the client's socket to go silent now, the lock would
        # stay for as long as the server takes to notice; so it is told how long it may wait for the commit.
        bound = """
            bound AS MATERIALIZED (
                SELECT set_config('idle_in_transaction_session_timeout', $5::text, true)
            )
        """

        return cls(
            claim=f"WITH {next_ones}, claimed AS ({lease}) {claimed}",
            claim_rest=f"""
                WITH {next_ones}, claimed AS ({lease})
                SELECT claimed.*, rest.due, {taken} FROM (SELECT ({due}) AS due) AS rest LEFT JOIN claimed ON true
            """,
            claim_telling=f"""
                WITH {next_ones}, claimed AS ({lease}), rest AS MATERIALIZED (
                    SELECT ({due}) AS due
                ), told AS MATERIALIZED (
                    SELECT pg_notify($5::text, CASE
                        WHEN (SELECT count(*) FROM next) < $1::int
                        THEN concat_ws(
                            ' ', 'drained', coalesce((SELECT due FROM rest)::text, '-'), pg_current_snapshot()
                        )
                        ELSE 'look ' || pg_current_xact_id()::text
                    END)
                    WHERE CASE
                        WHEN (SELECT count(*) FROM next) < $1::int
                        THEN $3::timestamptz = '-infinity' AND length(pg_current_snapshot()::text) < 7000
                        ELSE $6::bool
                    END
                )
                SELECT claimed.*, rest.due, {taken} FROM rest LEFT JOIN claimed ON true
                WHERE (SELECT count(*) FROM told) >= 0
            """,
            late=f"""
                SELECT (
                    SELECT vt FROM {q} WHERE vt >= $1::timestamptz AND vt < $2::timestamptz ORDER BY vt LIMIT 1
                ) AS late, {taken}
            """,
            # A lease that would be over already, since our clock stood still, is no lease.
            extend=f"""
                WITH extended AS (
                    UPDATE {q} AS m SET vt = f.new_vt
                    FROM unnest({_FENCE_ARRAYS}, $5::timestamptz[]) AS f ({_FENCE_COLUMNS}, new_vt)
                    WHERE {_FENCE} AND f.new_vt > now() RETURNING m.msg_id
                )
                SELECT array_agg(msg_id) FROM extended
            """,
            delete=f"WITH {deleted} SELECT array_agg(msg_id) FROM deleted",
            archive=f"WITH {archived} SELECT array_agg(msg_id) FROM archived",
            delete_last=f"WITH {bound}, {deleted} SELECT array_agg(msg_id) FROM deleted, bound",
            archive_last=f"WITH {bound}, {archived} SELECT array_agg(msg_id) FROM archived, bound",
            give_back=f"""
                WITH back AS (
                    UPDATE {q} AS m SET vt = now() + f.delay, read_ct = m.read_ct - f.refund
                    FROM unnest({_FENCE_ARRAYS}, $5::interval[], $6::int[])
                        AS f ({_FENCE_COLUMNS}, delay, refund)
                    WHERE {_FENCE} RETURNING m.msg_id
                ), told AS MATERIALIZED (SELECT {announcement})
                SELECT array_agg(msg_id) FROM back, told
            """,
            bury=f"""
                WITH dead AS (
                    DELETE FROM {q} AS m
                    USING unnest({_FENCE_ARRAYS}, $5::text[]) AS f ({_FENCE_COLUMNS}, added)
                    WHERE {_FENCE}
                    RETURNING m.msg_id, m.message, {with_reason} AS headers
                ), moved AS (
                    INSERT INTO {dead} (vt, message, headers)
                    SELECT now(), message, headers FROM dead ORDER BY msg_id
                )
                SELECT array_agg(msg_id) FROM dead
            """,
            bury_in_archive=f"""
                WITH dead AS (
                    DELETE FROM {q} AS m
                    USING unnest({_FENCE_ARRAYS}, $5::text[]) AS f ({_FENCE_COLUMNS}, added)
                    WHERE {_FENCE}
                    RETURNING {kept_of_m.replace("m.headers", with_reason + "AS headers")}
                ), archived AS (
                    INSERT INTO {a} ({kept}) SELECT {kept} FROM dead RETURNING msg_id
                )
                SELECT array_agg(msg_id) FROM archived
            """,
            # Waits for a statement of ours that may still be running although its connection is gone.
            present=f"""
                WITH present AS (SELECT msg_id FROM {q} WHERE msg_id = ANY ($1::bigint[]) FOR KEY SHARE)
                SELECT array_agg(msg_id) FROM present
            """,
            insert=insert(
                "m.headers",
                "unnest($1::text[], $2::text[], $3::interval[], $4::timestamptz[]) "
                f"{ordinality} (message, headers, delay, at, position)",
                "greatest(m.at, now() + m.delay - (cardinality($1::text[]) - m.position) * interval '1 microsecond')",
                "ORDER BY m.position",
            ),
            insert_part=insert("$2::text", f"unnest({lines}) {ordinality} (message, position)", of_part),
            insert_part_each=insert(
                "m.headers",
                f"unnest({lines}, string_to_array($2::text, E'\n', '')) {ordinality} (message, headers, position)",
                of_part,
            ),
            insert_keyed=keyed_insert(q, None if is_announced else announcement, bodies),
            dead_letters=f"""
                SELECT msg_id, {bodies.payload}::text, headers::text FROM {dead} AS m
                WHERE msg_id > $1::bigint ORDER BY msg_id LIMIT $2::bigint
            """,
            newest_dead_letter=f"SELECT max(msg_id) FROM {dead}",
            redrive=redrive(f"{page} ORDER BY msg_id LIMIT $3::int"),
            redrive_ids=redrive("msg_id = ANY ($1::bigint[]) ORDER BY msg_id"),
            purge_dead_letters=f"""
                WITH next AS (
                    SELECT msg_id FROM {dead} WHERE {page}
                    ORDER BY msg_id LIMIT $3::int FOR UPDATE SKIP LOCKED
                ), purged AS (
                    DELETE FROM {dead} AS m USING next WHERE m.msg_id = next.msg_id
                    RETURNING m.msg_id{bodies.check}
                ){bodies.dropped("purged")}
                SELECT msg_id FROM purged
            """,
        )
