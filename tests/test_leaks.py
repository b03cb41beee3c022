"""The leak check finds leaks, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TESTS = """
import asyncio, subprocess, sys, threading
import asyncpg, pytest

kept = []

async def test_clean():
    task = asyncio.create_task(asyncio.sleep(0))
    await asyncio.to_thread(lambda: None)
    connection = await asyncpg.connect(URL)
    await connection.close()

async def test_task_that_is_about_to_end():
    kept.append(asyncio.create_task(asyncio.sleep(0.1)))

async def test_task():
    kept.append(asyncio.create_task(asyncio.sleep(60)))

def test_thread():
    thread = threading.Thread(target=threading.Event().wait, args=(20,), daemon=True)
    thread.start()

async def test_connection():
    kept.append(await asyncpg.connect(URL))

@pytest.fixture
async def connection():
    connection = await asyncpg.connect(URL)
    yield connection
    await connection.close()

async def test_fixture(connection): ...

def test_process():
    kept.append(subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", "left behind"], stdin=-1))
"""


@pytest.fixture
def run(tmp_path: Path, server_url: str):
    def run(*names: str) -> tuple[int, str]:
        file = tmp_path / "test_them.py"
        file.write_text(TESTS.replace("URL", repr(server_url)))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "tests.leaks", "-p", "no:cacheprovider", "-rA", "-q"]
            + ["-o", "asyncio_mode=auto", "-W", "ignore", "--rootdir", str(tmp_path)]
            + [f"{file}::{name}" for name in names],
            cwd=tmp_path,
            env={
                **os.environ,
                "LEAK_PATIENCE": "0.7",
                "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_what_cleans_up_passes(run) -> None:
    code, output = run("test_clean", "test_task_that_is_about_to_end", "test_fixture")
    assert code == 0, output


@pytest.mark.parametrize("what", ["task", "thread", "connection"])
def test_what_is_left_is_an_error_of_that_test(run, what: str) -> None:
    code, output = run(f"test_{what}", "test_clean")
    assert code == 1, output
    assert f"ERROR test_them.py::test_{what}" in output
    assert f"{what}s behind" in output
    assert "2 passed, 1 error" in output


def test_a_process_that_is_left_fails_the_run(run) -> None:
    code, output = run("test_process", "test_clean")
    assert code == 1, output
    assert "leaves a process behind" in output
    assert "left behind" in output
