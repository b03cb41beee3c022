"""Middleware around a handler and a listener for events, on a queue in memory."""

import asyncio
from collections.abc import Sequence

from apalis_pgmq import Config, DeadLettered, Event, Idle, MemoryBackend, Next, Task, WorkerBuilder


async def log_calls(task: Task[str], call_next: Next) -> object:
    """Say what is about to run, and what came of it."""
    print(f"message {task.id}, attempt {task.attempt}")
    result = await call_next(task)
    print(f"message {task.id} -> {result}")
    return result


def greet(name: str) -> str:
    """A plain function: it runs in a thread."""
    if not name:
        raise ValueError("nobody to greet")
    return f"Hello, {name}!"


async def main(messages: Sequence[str]) -> None:
    """Work off the messages, then stop."""
    queue = MemoryBackend(Config("names", visibility_timeout=0.2, max_retries=1), str)

    def on_event(event: Event) -> None:
        if isinstance(event, DeadLettered):
            print(f"message {event.id} was given up: {event.reason}, {event.error}")
        if isinstance(event, Idle) and not queue.messages:
            worker.stop()

    worker = WorkerBuilder("greeter").backend(queue).middleware(log_calls).on_event(on_event).build(greet)
    await queue.push_many(messages)
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main(["Ada", "Grace", ""]))
