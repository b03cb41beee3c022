"""Large payloads beside the queue: the claim check. The table, and what statements have to say of it.

A queue's large payloads, its *bodies*, lie in ``pgmq.b_<queue>``, shared with its dead-letter queue. The message
itself is JSON's null then, and its header ``x-claim-check`` the body's id. A body is stored by the statement that
stores its message, and deleted by the one that deletes it. What moves a message moves the header only.
"""

from __future__ import annotations

from typing import Final

from apalis_pgmq.core import CLAIM_CHECK

DEAD_LETTERS: Final = "_dlq"


def bodies_table(queue: str) -> str:
    """Return the name of the table of a queue's bodies, without schema, and of its dead-letter queue's."""
    return f"b_{queue.removesuffix(DEAD_LETTERS)}".lower()


class Bodies:
    """What a queue's statements have to say of bodies: nothing, where it has none.

    Args:
        table: the table of its bodies, as SQL; None: it has none.
        over: payloads of more bytes than that become bodies.
    """

    __slots__ = ("_over", "_table")

    def __init__(self, table: str | None = None, over: int = 0) -> None:
        self._table = table
        self._over = over

    def __bool__(self) -> bool:
        return self._table is not None

    @property
    def payload(self) -> str:
        """The payload of a message ``m``, wherever it lies."""
        if self._table is None:
            return "m.message"
        return f"coalesce((SELECT b.body FROM {self._table} AS b WHERE b.id = m.headers->>'{CLAIM_CHECK}'), m.message)"

    @property
    def check(self) -> str:
        """A further column of what is returned of a message ``m`` that is deleted, for `dropped`."""
        return f", m.headers->>'{CLAIM_CHECK}' AS body_id" if self else ""

    def dropped(self, removed: str) -> str:
        """Return a further part of a WITH clause, which deletes the bodies of what another one deletes."""
        if self._table is None:
            return ""
        # An array, and so a look into the index for each, whatever the planner thinks of the table's size.
        return f"""
            , dropped AS (
                DELETE FROM {self._table} WHERE id = ANY (
                    ARRAY(SELECT body_id FROM {removed} WHERE body_id IS NOT NULL)
                )
            )
        """

    def given(self, source: str) -> str:
        """Return parts of a WITH clause that store the bodies of what is sent, and give all of it in ``given``."""
        if self._table is None:
            return ""
        return f"""
            given AS MATERIALIZED (
                SELECT *, CASE WHEN octet_length(message) > {self._over} THEN gen_random_uuid()::text END AS body_id
                FROM {source}
            ), stored AS (
                INSERT INTO {self._table} (id, body)
                SELECT body_id, message::jsonb FROM given WHERE body_id IS NOT NULL
            ),
        """

    def sent(self, headers: str) -> tuple[str, str]:
        """Return message and headers of what is sent, as SQL, from a row ``m`` of the source, or of ``given``."""
        if not self:
            return "m.message::jsonb", f"{headers}::jsonb"
        return (
            "CASE WHEN m.body_id IS NULL THEN m.message ELSE 'null' END::jsonb",
            f"""CASE WHEN m.body_id IS NULL THEN {headers}::jsonb
                ELSE coalesce({headers}::jsonb, '{{}}') || jsonb_build_object('{CLAIM_CHECK}', m.body_id) END""",
        )
