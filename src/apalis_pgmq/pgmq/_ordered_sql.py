"""What an ordered queue has in the database beside PGMQ's own, and the statements that use it.

The *group* of a message is the hash of its header ``x-pgmq-group``: as an index key it has eight bytes, however long the
header is. Groups whose hashes are equal by chance are worked as one, which harms nobody.

The *head* of a group is the message that is next: one that has been delivered and is still there, otherwise the one
with the lowest id. The index on groups is in that order, so that finding a head is one look at it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from apalis_pgmq.core import GROUP_HEADER

from ._names import SCHEMA, insert_channel, literal, queue_table, quote
from ._sql import _FENCE, _FENCE_ARRAYS, _FENCE_COLUMNS

if TYPE_CHECKING:
    from ._bodies import Bodies
    from ._sql import Statements

VERSION: Final = "apalis-pgmq ordered 1"
"""The comment on a queue's claim function, to be changed with any of the objects."""
TRIGGER: Final = "apalis_pgmq_freed"
SETTLES: Final = "apalis_pgmq.settles"
"""A run-time parameter that is ``on`` for whoever sees to the next messages itself after having removed some."""


def names(queue: str) -> dict[str, str]:
    """Return the names of what an ordered queue has of its own, without schema and not quoted."""
    lowered = queue.lower()
    return {kind: f"apalis_{kind}_{lowered}" for kind in ("group", "order", "claim", "free", "freed")}


def _group(row: str = "") -> str:
    return f"hashtextextended({row and row + '.'}headers->>{literal(GROUP_HEADER)}, 0)"


def _lock(group: str, table: str) -> str:
    return f"pg_try_advisory_xact_lock({group} # hashtextextended({literal(table)}, 7))"


INSPECT_ORDERED: Final = f"""
SELECT
    coalesce((
        SELECT obj_description(p.oid, 'pg_proc') FROM pg_proc AS p
        WHERE p.pronamespace = n.oid AND p.proname = $2::text
    ) = '{VERSION}', false)
    AND EXISTS (
        SELECT FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
        WHERE c.relnamespace = n.oid AND c.relname = $1::text AND t.tgname = '{TRIGGER}'
          AND t.tgenabled IN ('O', 'A')
    )
    AND 2 = (
        SELECT count(*) FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid
        JOIN pg_class AS x ON x.oid = i.indexrelid
        WHERE c.relnamespace = n.oid AND c.relname = $1::text AND i.indisvalid AND x.relname = ANY ($3::text[])
    )
FROM pg_namespace AS n WHERE n.nspname = '{SCHEMA}'
"""
"""Whether a queue has all that ordered claims need: ``$1`` its table, ``$2`` its claim function, ``$3`` its indexes."""


def ordering(queue: str, *, has_last_read_at: bool) -> str:
    """Return the statements that give a queue what ordered claims need; safe to repeat.

    Args:
        queue: its name.
        has_last_read_at: whether its tables have that column (PGMQ 1.10 and later).
    """
    read_at = ", last_read_at = now()" if has_last_read_at else ""
    table = queue_table(queue)
    q = f"{SCHEMA}.{quote(table)}"
    name = {kind: quote(text) for kind, text in names(queue).items()}
    channel = insert_channel(queue)
    announce = (
        f"PERFORM pg_notify({literal(channel)}, pg_current_xact_id()::text);" if channel is not None else ""
    )
    # Plans are made once, for tables of any size.
    planned = """
        SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
        SET enable_sort = off SET enable_incremental_sort = off SET enable_hashjoin = off SET enable_mergejoin = off
    """

    def head(group: str, columns: str = "h.msg_id") -> str:
        return f"""
            SELECT {columns} FROM {q} AS h WHERE {_group("h")} = {group}
            ORDER BY (h.read_ct = 0), h.msg_id LIMIT 1
        """

    return f"""
    CREATE INDEX IF NOT EXISTS {name["group"]} ON {q} (({_group()}), (read_ct = 0), msg_id)
        WHERE {_group()} IS NOT NULL;
    CREATE INDEX IF NOT EXISTS {name["order"]} ON {q} (vt, msg_id);

    CREATE OR REPLACE FUNCTION {SCHEMA}.{name["claim"]}(
        most int, lease interval, since timestamptz, since_id bigint, look int, ahead float8, channel text,
        tell_full bool, freed bigint[],
        OUT ids bigint[], OUT groups bigint[], OUT read_cts int[], OUT vt timestamptz, OUT messages text[], OUT headers text[],
        OUT enqueued timestamptz[], OUT place timestamptz, OUT place_id bigint, OUT at_end bool, OUT due float8,
        OUT clock timestamptz
    ) LANGUAGE plpgsql VOLATILE {planned} AS $claim$
    #variable_conflict use_column
    DECLARE
        found_ids bigint[];
        found_groups bigint[];
        wanted int;
        taken bigint[];
        missed bigint[];
        seen text;
    BEGIN
        clock := now();
        wanted := most - least(cardinality(freed), most * 7 / 8);
        -- 1. Visible heads, by the snapshot of this statement.
        SELECT
            array_agg(f.msg_id), array_agg(f.grp),
            (array_agg(f.vt ORDER BY f.vt DESC, f.msg_id DESC))[1],
            (array_agg(f.msg_id ORDER BY f.vt DESC, f.msg_id DESC))[1],
            CASE WHEN channel IS NOT NULL THEN pg_current_snapshot()::text END
        INTO found_ids, found_groups, place, place_id, seen
        FROM (
            SELECT c.msg_id, c.vt, c.grp FROM (
                SELECT m.msg_id, m.vt, {_group("m")} AS grp FROM {q} AS m
                WHERE (m.vt, m.msg_id) > (since, since_id) AND m.vt <= clock
                ORDER BY m.vt, m.msg_id LIMIT look
            ) AS c
            WHERE c.grp IS NULL OR c.msg_id = ({head("c.grp")})
            LIMIT wanted
        ) AS f;
        at_end := false;
        IF coalesce(cardinality(found_ids), 0) < wanted THEN
            SELECT c.vt, c.msg_id INTO place, place_id FROM {q} AS c
            WHERE (c.vt, c.msg_id) > (since, since_id) AND c.vt <= clock
            ORDER BY c.vt, c.msg_id OFFSET look - 1 LIMIT 1;
            at_end := NOT FOUND;
        END IF;
        -- 2. Whoever claims of a group holds its lock until the claim is committed.
        SELECT array_agg(f.msg_id) INTO ids FROM unnest(found_ids, found_groups) AS f (msg_id, grp)
        WHERE f.grp IS NULL OR {_lock("f.grp", table)};
        taken := freed[:most - coalesce(cardinality(found_ids), 0)];
        missed := freed[1 + cardinality(taken):];
        SELECT array_agg(t.grp) FILTER (WHERE t.ours), missed || array_agg(t.grp) FILTER (WHERE NOT t.ours)
        INTO taken, missed
        FROM (SELECT u.grp, {_lock("u.grp", table)} AS ours FROM unnest(taken) AS u (grp)) AS t;
        -- 3. Those that are still heads, by a snapshot that is younger than the locks.
        WITH next AS (
            SELECT m.msg_id FROM {q} AS m
            WHERE m.msg_id = ANY (ids) AND m.vt <= clock
              AND ({_group("m")} IS NULL OR m.msg_id = ({head(_group("m"))}))
            FOR UPDATE OF m SKIP LOCKED
        ), head AS MATERIALIZED (
            SELECT h.msg_id FROM unnest(taken) AS t (grp) CROSS JOIN LATERAL ({head("t.grp")}) AS h
        ), following AS (
            SELECT m.msg_id FROM head JOIN {q} AS m USING (msg_id) WHERE m.vt <= clock
            FOR UPDATE OF m SKIP LOCKED
        ), leased AS (
            UPDATE {q} AS m SET vt = clock + lease, read_ct = m.read_ct + 1{read_at}
            FROM (SELECT msg_id FROM next UNION ALL SELECT msg_id FROM following) AS n
            WHERE m.msg_id = n.msg_id
            RETURNING m.msg_id, {_group("m")} AS grp, m.read_ct, m.message::text AS message, m.headers::text AS headers, m.enqueued_at
        )
        SELECT
            array_agg(l.msg_id), array_agg(l.grp), array_agg(l.read_ct), array_agg(l.message), array_agg(l.headers),
            array_agg(l.enqueued_at)
        INTO ids, groups, read_cts, messages, headers, enqueued
        FROM leased AS l;
        vt := clock + lease;
        IF cardinality(missed) > 0 THEN
            PERFORM {SCHEMA}.{name["free"]}(missed);
        END IF;
        IF at_end THEN
            -- The next head that is due; or where to look again, if there are many before it that are none.
            SELECT extract(epoch FROM min(u.vt) - clock_timestamp()) INTO due FROM (
                SELECT c.vt FROM (
                    SELECT m.vt, m.msg_id, {_group("m")} AS grp,
                        row_number() OVER (ORDER BY m.vt, m.msg_id) AS position
                    FROM {q} AS m WHERE m.vt > clock AND m.vt <= clock + make_interval(secs => ahead)
                    ORDER BY m.vt, m.msg_id LIMIT 100
                ) AS c
                WHERE c.grp IS NULL OR c.position = 100 OR c.msg_id = ({head("c.grp")})
                LIMIT 1
            ) AS u;
        END IF;
        IF channel IS NOT NULL THEN
            IF at_end AND since = '-infinity' AND length(seen) < 7000
                AND coalesce(cardinality(ids), 0) >= coalesce(cardinality(found_ids), 0)
                AND coalesce(cardinality(missed), 0) = 0
            THEN
                PERFORM pg_notify(channel, concat_ws(' ', 'drained', coalesce(due::text, '-'), seen));
            ELSIF NOT at_end AND tell_full THEN
                PERFORM pg_notify(channel, 'look ' || pg_current_xact_id()::text);
            END IF;
        END IF;
    END $claim$;

    CREATE OR REPLACE FUNCTION {SCHEMA}.{name["free"]}(groups bigint[]) RETURNS bigint
    LANGUAGE plpgsql VOLATILE {planned} AS $free$
    DECLARE
        freed bigint;
    BEGIN
        WITH head AS MATERIALIZED (
            SELECT h.msg_id FROM (SELECT DISTINCT unnest(groups) AS grp) AS g
            CROSS JOIN LATERAL ({head("g.grp", "h.msg_id, h.vt")}) AS h
            WHERE h.vt <= clock_timestamp()
        ), free AS (
            SELECT m.msg_id FROM head JOIN {q} AS m USING (msg_id)
            WHERE m.vt <= clock_timestamp() FOR UPDATE OF m SKIP LOCKED
        )
        UPDATE {q} AS m SET vt = clock_timestamp() FROM free WHERE m.msg_id = free.msg_id;
        GET DIAGNOSTICS freed = ROW_COUNT;
        RETURN freed;
    END $free$;

    CREATE OR REPLACE FUNCTION {SCHEMA}.{name["freed"]}() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $freed$
    DECLARE
        groups bigint[];
    BEGIN
        IF current_setting('{SETTLES}', true) = 'on' THEN
            RETURN NULL;
        END IF;
        SELECT array_agg(DISTINCT {_group("g")}) FILTER (WHERE {_group("g")} IS NOT NULL) INTO groups
        FROM gone AS g;
        IF groups IS NOT NULL AND {SCHEMA}.{name["free"]}(groups) > 0 THEN
            {announce or "NULL;"}
        END IF;
        RETURN NULL;
    END $freed$;

    DROP TRIGGER IF EXISTS {TRIGGER} ON {q};
    CREATE TRIGGER {TRIGGER} AFTER DELETE ON {q} REFERENCING OLD TABLE AS gone
        FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.{name["freed"]}();

    COMMENT ON FUNCTION {SCHEMA}.{name["claim"]} IS '{VERSION}';
    """


def free(queue: str) -> str:
    """Return the statement that makes heads visible anew, as far as they are visible: ``$1`` groups."""
    return f"SELECT {SCHEMA}.{quote(names(queue)['free'])}($1::bigint[])"


def claim(queue: str, bodies: Bodies) -> str:
    """Return the statement that claims heads: the arguments of the function above.

    Args:
        queue: its name.
        bodies: brings large payloads from where they lie.
    """
    payloads = f"""
        SELECT array_agg({bodies.payload}::text ORDER BY m.position) FROM (
            SELECT u.message::jsonb AS message, u.headers::jsonb AS headers, u.position
            FROM unnest(c.messages, c.headers) WITH ORDINALITY AS u (message, headers, position)
        ) AS m
    """
    return f"""
        SELECT c.*, {f"({payloads})" if bodies else "c.messages"} AS payloads
        FROM {SCHEMA}.{quote(names(queue)["claim"])}(
            $1::int, $2::interval, $3::timestamptz, $4::bigint, $5::int, $6::float8, $7::text, $8::bool, $9::bigint[]
        ) AS c
    """


def ordered(statements: Statements, queue: str, bodies: Bodies) -> Statements:
    """Return the statements for a queue that is worked in order; its ``claim`` is that of `OrderedClaims`.

    What is handed back as never delivered may leave another message as the head of its group, which is made
    visible anew as after a removal.
    """
    q = f"{SCHEMA}.{quote(queue_table(queue))}"
    channel = insert_channel(queue)
    told = "true" if channel is None else f"pg_notify({literal(channel)}, pg_current_xact_id()::text)"
    return replace(
        statements,
        claim=claim(queue, bodies),
        give_back=f"""
            WITH back AS (
                UPDATE {q} AS m SET vt = now() + f.delay, read_ct = m.read_ct - f.refund
                FROM unnest({_FENCE_ARRAYS}, $5::interval[], $6::int[])
                    AS f ({_FENCE_COLUMNS}, delay, refund)
                WHERE {_FENCE} RETURNING m.msg_id, m.read_ct, {_group("m")} AS grp
            ), freed AS MATERIALIZED (
                SELECT {SCHEMA}.{quote(names(queue)["free"])}(array_agg(grp) FILTER (WHERE read_ct = 0))
                FROM back
            ), told AS MATERIALIZED (SELECT {told} FROM freed)
            SELECT array_agg(msg_id) FROM back, told
        """,
    )
