"""What was measured, as a table, as JSON, and as a piece of advice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

from apalis_pgmq._version import __version__

from ._bench_push import SENDERS

if TYPE_CHECKING:
    from ._bench_common import Pair
    from ._bench_drain import Drain
    from ._bench_latency import Latency
    from ._bench_push import Push, Server

_SLOW_COMMIT: Final = 5.0
_SLOW_ROUND_TRIP: Final = 2.0


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured, and how."""

    messages: int
    concurrency: int
    seconds: float
    throw_away: bool
    server: Server
    drain: Drain
    latency: Latency
    push: Push

    def json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "version": __version__,
            "messages": self.messages,
            "concurrency": self.concurrency,
            "seconds": self.seconds,
            "server": {
                "version": self.server.version,
                "throw_away": self.throw_away,
                "round_trip_ms": self.server.round_trip,
                "commit_ms": self.server.commit,
            },
            "drain": {
                "messages_per_second": _json(self.drain.rate),
                "cpu_us_per_message": _json(self.drain.cpu),
                "transactions_per_message": (
                    None if self.drain.transactions is None else _json(self.drain.transactions)
                ),
            },
            "latency": {
                "messages": {
                    "apalis_pgmq": int(self.latency.messages.ours),
                    "bare": int(self.latency.messages.bare),
                },
                **{f"p{percent}_ms": _json(pair) for percent, pair in self.latency.percentiles.items()},
            },
            "push": {
                "pushes_per_second": _json(self.push.single),
                "push_many_per_second": _json(self.push.many),
            },
        }

    def table(self) -> Table:
        """Return it as a table."""
        table = Table(title_style="bold", header_style="bold")
        table.add_column("Measured")
        for heading in ("apalis-pgmq", "Bare asyncpg", "Ratio"):
            table.add_column(heading, justify="right")

        def chapter(title: str) -> None:
            table.add_section()
            table.add_row(f"[bold]{title}[/]")

        def row(name: str, pair: Pair, digits: int = 0) -> None:
            table.add_row(
                f"  {name}", f"{pair.ours:,.{digits}f}", f"{pair.bare:,.{digits}f}", f"{pair.ratio:.2f}"
            )

        chapter(f"Drain of {self.messages:,} no-op messages")
        row("messages/s", self.drain.rate)
        row("processor µs per message", self.drain.cpu, 1)
        if self.drain.transactions is not None:
            row("transactions per message", self.drain.transactions, 4)
        chapter("Latency from push to handler start")
        for percent, pair in self.latency.percentiles.items():
            row(f"p{percent}, ms", pair, 2)
        chapter(f"Sending, against {SENDERS} connections")
        row(f"push by {SENDERS} coroutines, messages/s", self.push.single)
        row(f"one push_many of {self.messages:,}, messages/s", self.push.many)
        chapter(f"Server, PostgreSQL {self.server.version}")
        table.add_row("  round trip of SELECT 1, ms", "", f"{self.server.round_trip:.2f}")
        table.add_row("  durable commit, ms", "", f"{self.server.commit:.2f}")
        return table

    def advice(self) -> str | None:
        """Return what limits this server more than any client could, if something does."""
        limits = []
        if self.server.round_trip > _SLOW_ROUND_TRIP:
            limits.append(
                f"the network: a round trip takes {self.server.round_trip:.1f} ms, so run workers closer to it"
            )
        # A commit contains a round trip: one that takes hardly longer says nothing about the disk.
        if self.server.commit > _SLOW_COMMIT and self.server.commit > 2 * self.server.round_trip:
            limits.append(
                f"the disk: a durable commit takes {self.server.commit:.1f} ms, so give its log a faster one"
            )
        return f"The limit of this server is {'; and '.join(limits)}." if limits else None


def _json(pair: Pair) -> dict[str, float]:
    return {"apalis_pgmq": pair.ours, "bare": pair.bare, "ratio": pair.ratio}
