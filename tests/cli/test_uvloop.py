"""``apalis-pgmq run --uvloop``."""

import asyncio
import signal
import sys

import pytest

from .conftest import queue_length

needs_uvloop = pytest.mark.skipif(sys.platform == "win32", reason="there is no uvloop for Windows")


@needs_uvloop
@pytest.mark.parametrize("workers", [1, 2])
def test_every_process_runs_on_it_and_stops_cleanly(app, workers):
    app.push((1, 0.5))
    process = app.run("app:worker", "--uvloop", "--workers", str(workers))
    app.workers_up(workers)
    app.wait_for("begin", 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert app.notes("loop") == [["uvloop"]] * workers
    assert len(app.notes("end")) == 1
    assert asyncio.run(queue_length(app.url, app.queue)) == 0
    assert "Traceback" not in app.log()


@pytest.mark.parametrize("options", [[], ["--no-uvloop"]])
def test_without_the_option_it_is_asyncios_own_loop(app, options):
    process = app.run("app:worker", *options)
    app.workers_up(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    [[module]] = app.notes("loop")
    assert module.startswith("asyncio.")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_where_it_is_not_installed_the_option_is_a_usage_error(app, workers):
    missing = "raise ModuleNotFoundError(\"No module named 'uvloop'\", name='uvloop')"
    (app.directory / "uvloop.py").write_text(missing)
    process = app.run("app:worker", "--uvloop", "--workers", workers, "--log-level", "critical")
    assert process.wait(10) == 2
    assert "pip install 'apalis-pgmq[uvloop]'" in app.log()
    assert len(app.log().splitlines()) == 1


def test_what_goes_wrong_inside_it_is_shown(app):
    (app.directory / "uvloop.py").write_text("import no_such_package")
    process = app.run("app:worker", "--uvloop")
    assert process.wait(10) == 1
    assert "No module named 'no_such_package'" in app.log()
