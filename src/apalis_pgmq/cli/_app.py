"""The commands and their options; what they do is in modules of their own."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from apalis_pgmq._version import __version__

from ._exits import exits
from ._lifeline import Lifeline
from ._run import Program
from ._setup import SetUp, set_up
from ._supervisor import supervise

_EPILOG = "Exit codes: 0 fine · 1 failed · 2 called wrongly · 130 interrupted."

_Url = Annotated[
    str,
    typer.Option(
        "--url", envvar="APALIS_PGMQ_URL", help="The database, as postgresql://user:password@host/name."
    ),
]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]

app = typer.Typer(
    name="apalis-pgmq",
    help="Background workers on PGMQ, the message queue in PostgreSQL.",
    epilog=_EPILOG,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


def main() -> None:
    """Run the command line; ends the process."""
    app()


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer hands it over like this
    if wanted:
        typer.echo(f"apalis-pgmq {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(epilog=_EPILOG)
def demo(
    *,
    messages: Annotated[int, typer.Option(min=2, max=1_000_000, help="How many e-mails to send.")] = 20_000,
    concurrency: Annotated[
        int, typer.Option(min=1, max=10_000, help="How many of them at the same time, at most.")
    ] = 50,
) -> None:
    """See it work: a queue, a worker, a retry and a dead letter, in a few seconds.

    It starts a PostgreSQL of its own and leaves nothing behind. If APALIS_PGMQ_URL is set, that server
    is used instead, with queues of a name of their own, which are dropped at the end.
    """
    from ._demo import run_demo  # noqa: PLC0415 - the other commands start faster without

    with exits():
        run_demo(messages, concurrency)


@app.command(epilog=_EPILOG)
def bench(
    *,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="APALIS_PGMQ_URL",
            help="The database, as postgresql://user:password@host/name; without one, a throw-away server.",
        ),
    ] = None,
    messages: Annotated[
        int, typer.Option(min=2, max=200_000, help="How many messages to drain, and to send at once.")
    ] = 20_000,
    concurrency: Annotated[int, typer.Option(min=1, max=10_000, help="Of the worker.")] = 50,
    seconds: Annotated[
        float,
        typer.Option(
            min=1, max=3600, help="How long to measure latency and single pushes, for each contender."
        ),
    ] = 5,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", dir_okay=False, help="Write the figures to a file, too."),
    ] = None,
) -> None:
    """Measure a server of yours: draining, latency and sending, against bare asyncpg loops in the same run.

    It makes queues of names of their own there, and drops them at the end, also when it is interrupted.
    """
    from ._bench import Options, run_bench  # noqa: PLC0415 - the other commands start faster without

    with exits():
        run_bench(Options(url, messages, concurrency, seconds, json_file))


@app.command(epilog=_EPILOG)
def run(
    *,
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:ATTRIBUTE",
            help="A Monitor, a Worker, or a function without parameters that returns one; "
            "a coroutine function will do. The current directory is searched first.",
        ),
    ],
    workers: Annotated[
        int,
        typer.Option(min=1, max=1000, help="How many processes run the target. One that dies is replaced."),
    ] = 1,
    shutdown_timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long running handlers may take to finish after a signal, 30 s by default. "
            "For a Worker only: a Monitor has its own, and refuses this option.",
        ),
    ] = None,
    log_level: Annotated[
        LogLevel,
        typer.Option(
            case_sensitive=False,
            help="What to log to stderr, unless the program has set up logging itself.",
        ),
    ] = LogLevel.INFO,
    uvloop: Annotated[
        bool,
        typer.Option(
            "--uvloop/--no-uvloop",
            help="Whether the processes that run the target use the event loop of uvloop, "
            "which costs less processor time: pip install 'apalis-pgmq[uvloop]'.",
        ),
    ] = False,
    process: Annotated[int, typer.Option(hidden=True, min=0)] = 0,
) -> None:
    """Run workers until a signal: SIGTERM or Ctrl-C stops them cleanly, a second one hurries them."""
    program = Program(target, shutdown_timeout, log_level.value, uvloop=uvloop)
    if process:
        # Every process makes the same mistake; one of them tells.
        with exits(mistakes_are_shown=process == 1):
            program.run(Lifeline.on_stdin())
    elif workers > 1:
        with exits():
            raise SystemExit(supervise(program, workers))
    else:
        with exits():
            program.run()


@app.command(epilog=_EPILOG)
def setup(
    *,
    queue: Annotated[str, typer.Argument(help="The queue's name.")],
    url: _Url,
    dead_letter: Annotated[
        bool,
        typer.Option(
            "--dead-letter/--no-dead-letter",
            help="Whether to make its dead-letter queue, QUEUE_dlq, too. "
            "Workers that may not create tables need it to be there.",
        ),
    ] = True,
    notify: Annotated[
        bool,
        typer.Option(
            "--notify/--no-notify",
            help="Whether to have every insert announced, by a trigger for each statement, so that workers "
            "need not poll; on a queue that is there already, too. Takes the right to add a trigger.",
        ),
    ] = True,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune/--no-tune",
            help="Whether to have the queue's table vacuumed as soon as 10,000 rows are dead, and without pauses.",
        ),
    ] = False,
    ordered: Annotated[
        bool,
        typer.Option(
            "--ordered/--not-ordered",
            help="Whether to give the queue what workers need that work it in order within message groups "
            "(Config(ordered=True)): two indexes, functions and a trigger.",
        ),
    ] = False,
    dedup: Annotated[
        bool,
        typer.Option(
            "--dedup", help="Make the table that senders with a dedup_key need, for those that may not."
        ),
    ] = False,
    unlogged: Annotated[
        bool,
        typer.Option(
            "--unlogged", help="A queue that is faster, and loses all messages when PostgreSQL crashes."
        ),
    ] = False,
    partitions: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="INTERVAL RETENTION",
            help="A queue in partitions, by pg_partman, each of so many messages (10000 100000) or of such a time "
            "(1d 7d). What is older than RETENTION is dropped, handled or not.",
        ),
    ] = None,
) -> None:
    """Make PGMQ and a queue ready. Harmless where they are there already."""
    wanted = SetUp(
        queue=queue,
        dead_letter=dead_letter,
        notify=notify,
        tune=tune,
        dedup=dedup,
        ordered=ordered,
        unlogged=unlogged,
        partitions=partitions,
    )
    with exits():
        set_up(url, wanted)


@app.command(epilog=_EPILOG)
def queues(
    *,
    url: _Url,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, ages in seconds.")] = False,
) -> None:
    """List the queues: how long each is, and how old what is in it."""
    from ._queues import list_queues  # noqa: PLC0415 - the other commands start faster without

    with exits():
        list_queues(url, as_json=as_json)


@app.command(epilog=_EPILOG)
def purge(
    *,
    queue: Annotated[str, typer.Argument(help="The queue's name.")],
    url: _Url,
    yes: _Yes = False,
) -> None:
    """Delete every message of a queue, those in flight included. Asks before it does."""
    from ._queues import purge as run_purge  # noqa: PLC0415 - the other commands start faster without

    with exits():
        run_purge(url, queue, is_sure=yes)


@app.command(epilog=_EPILOG)
def drop(
    *,
    queue: Annotated[str, typer.Argument(help="The queue's name.")],
    url: _Url,
    yes: _Yes = False,
) -> None:
    """Drop a queue with its messages and its archive. Asks before it does."""
    from ._queues import drop as run_drop  # noqa: PLC0415 - the other commands start faster without

    with exits():
        run_drop(url, queue, is_sure=yes)
