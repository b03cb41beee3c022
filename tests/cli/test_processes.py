"""``apalis-pgmq run --workers N``: several processes, and what becomes of them."""

import asyncio
import os
import signal
from collections import Counter

import pytest

from .conftest import eventually, is_running, queue_length


def length(app):
    return asyncio.run(queue_length(app.url, app.queue))


def test_two_processes_share_the_messages_and_handle_each_once(app):
    process = app.run("app:worker", "--workers", "2")
    workers = app.workers_up(2)
    app.push(*((number, 0.01) for number in range(200)))
    ends = app.wait_for("end", 200)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert Counter(int(number) for number, _ in app.notes("end")) == Counter(range(200))
    assert {int(pid) for _, pid in ends} == set(workers)
    assert not any(map(is_running, workers))
    assert length(app) == 0


def test_a_stop_lets_running_handlers_finish(app):
    app.push((1, 1), (2, 1))
    process = app.run("app:worker", "--workers", "2")
    app.workers_up(2)
    app.wait_for("begin", 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert len(app.notes("end")) == 2
    assert length(app) == 0


def test_ctrl_c_in_a_terminal_counts_once(app):
    app.push((1, 1))
    process = app.run("app:monitor", "--workers", "2")
    app.workers_up(2)
    app.wait_for("begin", 1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(10) == 0
    assert len(app.notes("end")) == 1
    assert app.log().count("received SIGINT") == 1


def test_a_service_manager_that_signals_every_process_counts_once(app):
    app.push((1, 1))
    process = app.run("app:worker", "--workers", "2")
    workers = app.workers_up(2)
    app.wait_for("begin", 1)
    for pid in (process.pid, *workers):
        os.kill(pid, signal.SIGTERM)
    assert process.wait(10) == 0
    assert len(app.notes("end")) == 1


def test_a_second_signal_hurries_the_processes(app):
    app.push((1, 60))
    process = app.run("app:worker", "--workers", "2")
    app.workers_up(2)
    app.wait_for("begin", 1)
    process.send_signal(signal.SIGTERM)
    app.wait_for_log("received SIGTERM")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert app.notes("end") == []
    assert length(app) == 1


def test_a_third_signal_kills_what_hangs(app):
    app.push((1, 60))
    process = app.run("app:hanging", "--workers", "2")
    workers = app.workers_up(2)
    app.wait_for("begin", 1)
    for count in (1, 2, 3):
        process.send_signal(signal.SIGTERM)
        app.wait_for_log("received SIGTERM", count)
    assert process.wait(10) == 1
    assert "was killed by SIGKILL before it had stopped" in app.log()
    eventually(lambda: not any(map(is_running, workers)))


def test_a_killed_process_is_replaced(app):
    process = app.run("app:worker", "--workers", "2")
    victim, survivor = app.workers_up(2)
    os.kill(victim, signal.SIGKILL)
    replacement = app.workers_up(3)[2]
    assert f"process {victim} was killed by SIGKILL; a new one starts in" in app.log()
    os.kill(survivor, signal.SIGSTOP)
    app.push((1, 0))
    [(_, pid)] = app.wait_for("end", 1)
    assert int(pid) == replacement
    os.kill(survivor, signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_processes_stop_cleanly_when_their_supervisor_is_killed(app):
    app.push((1, 0.5))
    process = app.run("app:worker", "--workers", "2")
    workers = app.workers_up(2)
    app.wait_for("begin", 1)
    process.kill()
    eventually(lambda: not any(map(is_running, workers)), 5)
    assert len(app.notes("end")) == 1
    assert length(app) == 0


def test_not_even_a_hanging_process_outlives_its_supervisor(app):
    app.push((1, 60))
    process = app.run("app:hanging", "--workers", "2", "--shutdown-timeout", "0.2")
    workers = app.workers_up(2)
    app.wait_for("begin", 1)
    process.kill()
    eventually(lambda: not any(map(is_running, workers)), 8)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere:worker"], "module 'nowhere' not found"),
        (["app:text"], "not 'str'"),
        (["app:monitor", "--shutdown-timeout", "1"], "write Monitor(shutdown_timeout=...) there"),
    ],
)
def test_a_mistake_is_told_once_and_ends_the_run(app, arguments, text):
    process = app.run(*arguments, "--workers", "3", "--log-level", "critical")
    assert process.wait(10) == 2
    assert app.log().count(text) == 1
    assert len(app.log().splitlines()) == 1


def test_a_program_that_does_not_start_ends_the_run(app):
    (app.directory / "broken.py").write_text("raise ValueError('a mistake')")
    process = app.run("broken:worker", "--workers", "2")
    assert process.wait(10) == 1
    assert "ValueError: a mistake" in app.log()
    assert "failed with exit code 1" in app.log()
    assert "a new one starts" not in app.log()
