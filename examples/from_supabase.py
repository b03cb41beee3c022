"""A Supabase edge function feeds a Python worker.

In the function, with the queue exposed over the Data API::

    await supabase.schema('pgmq_public').rpc('send', {
        queue_name: 'signups',
        message: { user_id: '6f0c', email: 'ada@example.com' },
        sleep_seconds: 0,
    })

What arrives is the object, as it is, without headers. It runs on a throw-away server, which is given Supabase's wrapper
function, and calls it by name and JSON, as the Data API does.
"""

import asyncio
import json
from dataclasses import dataclass

import asyncpg

from apalis_pgmq import PgMqBackend, Task, WorkerBuilder, WorkerContext
from apalis_pgmq.embedded import embedded_postgres

WRAPPER = """
CREATE SCHEMA pgmq_public;
CREATE FUNCTION pgmq_public.send(queue_name text, message jsonb, sleep_seconds integer DEFAULT 0)
RETURNS SETOF bigint LANGUAGE sql AS $$
    SELECT * FROM pgmq.send(queue_name => queue_name, msg => message, delay => sleep_seconds)
$$;
"""
CALL = """
SELECT sent.* FROM jsonb_to_record($1::text::jsonb) AS given (queue_name text, message jsonb, sleep_seconds integer),
    pgmq_public.send(given.queue_name, given.message, given.sleep_seconds) AS sent
"""
BODY = {
    "queue_name": "signups",
    "message": {"user_id": "6f0c", "email": "ada@example.com"},
    "sleep_seconds": 0,
}


@dataclass
class SignUp:
    """What the edge function sends."""

    user_id: str
    email: str


async def welcome(message: SignUp, task: Task[SignUp], worker: WorkerContext) -> None:
    """Welcome a user; one is enough for an example."""
    print(f"Welcome, {message.email}! (headers: {dict(task.headers)})")
    worker.stop()


async def main(url: str) -> None:
    """Call as the Data API does, and have the message handled."""
    async with PgMqBackend(url, "signups", SignUp) as signups:
        connection = await asyncpg.connect(url)
        await connection.execute(WRAPPER)
        await connection.fetch(CALL, json.dumps(BODY))
        await connection.close()
        await WorkerBuilder("signups").backend(signups).build(welcome).run()


if __name__ == "__main__":
    with embedded_postgres() as database:
        asyncio.run(main(database))
