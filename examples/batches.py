"""Many messages for one call of a handler, some of which fail, on a queue in memory."""

import asyncio

from apalis_pgmq import AbortError, Batch, Event, Idle, MemoryBackend, WorkerBuilder


async def index(batch: Batch[str]) -> None:
    """Index words together; refuse the empty ones."""
    words = []
    for task in batch:
        if task.args:
            words.append(task.args)
        else:
            batch.fail(task, AbortError("an empty word"))
    print(f"indexed {len(words)} of {len(batch)}")


async def main() -> None:
    """Work off ten words, one of them empty, four at a time."""
    queue = MemoryBackend("words", str)

    def on_event(event: Event) -> None:
        if isinstance(event, Idle):
            worker.stop()

    worker = WorkerBuilder("indexer").backend(queue).batch(4, wait=0.05).on_event(on_event).build(index)
    await queue.push_many(
        ["ada", "grace", "", "edsger", "barbara", "donald", "john", "alan", "tony", "niklaus"]
    )
    await worker.run()
    print(f"{worker.stats.succeeded} succeeded, {worker.stats.dead_lettered} given up")


if __name__ == "__main__":
    asyncio.run(main())
