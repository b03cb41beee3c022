"""``apalis-pgmq run`` in one process: what can be run, and how it ends."""

import asyncio
import signal
import subprocess
import sys

import pytest

from .conftest import drop_queue, queue_length


@pytest.mark.parametrize("attribute", ["worker", "monitor", "factory", "async_factory", "holder.inner"])
def test_runs_workers_monitors_and_factories(app, attribute):
    process = app.run(f"app:{attribute}")
    app.push((1, 0))
    app.wait_for("end", 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert "Traceback" not in app.log()


def test_the_current_directory_is_searched_where_python_itself_does_not(app, environment):
    # As for the installed script, which python starts with its own directory on the path.
    (app.directory / "other.py").write_text("text = ''")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "apalis_pgmq.cli", "run", "other:text"],
        cwd=app.directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert "target 'other:text' must be" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_handler_finish(app, signum):
    app.push((1, 0.7))
    process = app.run("app:worker")
    app.wait_for("begin", 1)
    process.send_signal(signum)
    assert process.wait(10) == 0
    assert len(app.notes("end")) == 1
    assert asyncio.run(queue_length(app.url, app.queue)) == 0


def test_handlers_that_outlast_the_shutdown_timeout_are_cancelled(app):
    app.push((1, 60))
    process = app.run("app:worker", "--shutdown-timeout", "0.1")
    app.wait_for("begin", 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert app.notes("end") == []
    assert asyncio.run(queue_length(app.url, app.queue)) == 1


def test_a_monitor_has_its_own_shutdown_timeout(app):
    process = app.run("app:monitor", "--shutdown-timeout", "5")
    assert process.wait(10) == 2
    assert "write Monitor(shutdown_timeout=...) there" in app.log()
    assert "Traceback" not in app.log()


def test_a_worker_that_fails_for_good_ends_with_a_line_for_it(app):
    process = app.run("app:worker")
    app.workers_up(1)
    asyncio.run(drop_queue(app.url, app.queue))
    assert process.wait(10) == 1
    assert f"apalis-pgmq: queue '{app.queue}' is not there" in app.log().splitlines()[-1]
    assert "Traceback" not in app.log()


def test_the_log_level_decides_what_is_logged(app):
    for level, logged in [("info", True), ("warning", False)]:
        process = app.run("app:worker", "--log-level", level)
        app.workers_up(1 if logged else 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert ("received SIGTERM" in app.log()) is logged


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("app", "target 'app' must have the form module:attribute"),
        (":worker", "must have the form module:attribute"),
        ("nowhere:worker", "module 'nowhere' not found"),
        ("nowhere.deep:worker", "module 'nowhere.deep' not found"),
        ("app.deep:worker", "module 'app.deep' not found"),
        ("app.py:worker", "did you mean app:..."),
        (
            "app:wroker",
            "module 'app' has no attribute 'wroker'; it has worker, hanging, monitor",
        ),
        ("app:worker.nothing", "has no attribute 'worker.nothing'"),
        ("app:text", "must be a Monitor, a Worker or a function that returns one, not 'str'"),
        ("app:holder", "not <class 'app.holder'>"),
        ("app:makes_text", "not 'str', which app:makes_text returned"),
        ("app:with_parameters", "must be a function without parameters, but it takes (url)"),
    ],
)
def test_a_bad_target_is_a_usage_error(app, target, text):
    process = app.run(target)
    assert process.wait(10) == 2
    assert text in app.log()
    assert len(app.log().splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import no_such_package", "No module named 'no_such_package'"),
        ("raise ValueError('a mistake')", "a mistake"),
        ("def worker(): return 1 / 0", "division by zero"),
        ("import apalis_pgmq.worker.nothing", "nothing"),
    ],
)
def test_what_the_users_own_code_raises_is_shown_with_its_traceback(app, source, text):
    (app.directory / "broken.py").write_text(source)
    process = app.run("broken:worker")
    assert process.wait(10) == 1
    assert "Traceback (most recent call last)" in app.log()
    assert 'broken.py", line 1' in app.log()
    assert text in app.log()


def test_the_library_s_own_errors_in_the_users_code_need_no_traceback(app):
    (app.directory / "wrong.py").write_text(
        "from apalis_pgmq.core import Config\nconfig = Config('q', max_retries=-1)"
    )
    process = app.run("wrong:worker")
    assert process.wait(10) == 1
    assert app.log().startswith("apalis-pgmq: max_retries must be")
    assert len(app.log().splitlines()) == 1
