"""Every example runs."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from apalis_pgmq import PgMqBackend

from .test_readme import ROOT, read_until

EXAMPLES = ROOT / "examples"


async def run(*arguments: str, env: dict[str, str] | None = None) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


def test_every_example_is_tested_here() -> None:
    tests = Path(__file__).read_text()
    for example in EXAMPLES.glob("*.py"):
        assert example.stem in tests, example


async def test_middleware_and_events() -> None:
    output = await run("examples/middleware_and_events.py")
    assert "message 1 -> Hello, Ada!" in output
    assert "message 3 was given up: retries-exhausted, nobody to greet" in output


async def test_from_sql() -> None:
    assert "Order 1 of Ada confirmed" in await run("examples/from_sql.py")


async def test_exactly_once() -> None:
    output = await run("examples/exactly_once.py")
    assert output.splitlines() == ["ada has 75.00", "grace has 25.00"]


async def test_batches() -> None:
    assert "9 succeeded, 1 given up" in await run("examples/batches.py")


@pytest.mark.parametrize("example", ["in_fastapi", "in_django", "in_flask"])
async def test_web_frameworks(example: str) -> None:
    output = await run(f"examples/{example}.py")
    stored = {"in_fastapi": 200}.get(example, 201)
    assert output.splitlines() == [
        "Mallory was answered 403",
        f"Ada was answered {stored}",
        "Order 2 of Ada confirmed",
    ]


async def test_from_a_script() -> None:
    output = await run("examples/from_a_script.py")
    reports = ["Report for Ada", "Report for Grace", "Report for Barbara"]
    assert sorted(output.splitlines()[:-1]) == sorted(reports)
    assert output.splitlines()[-1] == "Report for Katherine"


async def test_from_supabase() -> None:
    assert "Welcome, ada@example.com! (headers: {})" in await run("examples/from_supabase.py")


async def test_worker(pgmq_url: str) -> None:
    async with PgMqBackend(pgmq_url, "invoices", dict[str, object]) as invoices:
        await invoices.push({"number": "2026-1", "amount_cents": 995})
        await invoices.push({"number": "2026-2", "amount_cents": 200_000})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "apalis_pgmq.cli", "run", "examples.worker:monitor"),
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": pgmq_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await read_until(process, "invoice 2026-1: 9.95")
    await read_until(process, "invoice 2026-2: 2000.00")
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(20):
        assert await process.wait() == 0
