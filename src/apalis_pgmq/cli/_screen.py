"""What the demonstration and the measurement look like: alive on a terminal, plain lines elsewhere."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rich.console import Console, RenderableType

_INDENT: Final = " "
_WIDTH: Final = 50
"""Columns of what a step is called, before its figures."""


class Screen:
    """The lines of a command that tells what it does, one kind a method.

    Args:
        console: where to; whether that is a terminal decides about colours and movement.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        can_tick = (console.encoding or "").lower().startswith("utf")
        self._good, self._bad = ("✓", "✗") if can_tick else ("+", "x")

    def opening(self, text: str) -> None:
        """Say what this is."""
        self.title(text)
        self._print(Text())

    @contextmanager
    def waiting_for(self, what: str) -> Iterator[None]:
        """Show that something is under way; not a trace of it remains."""
        if not self._console.is_terminal:
            yield
            return
        with self._console.status(Text(what, style="dim"), spinner_style="cyan"):
            yield

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar for as long as something is under way; it is moved by calling what is yielded."""
        bar = Progress(
            TextColumn(f"{_INDENT}{what}"),
            BarColumn(bar_width=36, complete_style="cyan", finished_style="cyan"),
            MofNCompleteColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        with bar:
            task = bar.add_task("", total=total)
            yield lambda completed: bar.update(task, completed=completed)

    def done(self, what: str, seconds: float, *, count: int | None = None) -> None:
        """Tell of a step that is done, how long it took, and how many a second that makes."""
        line = Text.assemble(_INDENT, (self._good, "bold green"), " ", what)
        line.append(" " * (_WIDTH - len(what)))
        line.append(f"{seconds:7.2f} s", "cyan")
        if count is not None:
            line.append(f"{count / max(seconds, 1e-9):10,.0f}/s", "bold cyan")
        self._print(line)

    def title(self, text: str) -> None:
        """Begin a chapter."""
        self._print(Text())
        self._print(Text(f"{_INDENT}{text}", style="bold"))

    def note(self, text: str) -> None:
        """Tell something beside."""
        self._print(Text(f"{_INDENT}  {text}", style="dim"))

    def attempt(self, number: int, failure: str | None) -> None:
        """Tell how an attempt went."""
        mark = (self._bad, "bold red") if failure is not None else (self._good, "bold green")
        outcome = "succeeded" if failure is None else f"failed: {failure}"
        self._print(Text.assemble(_INDENT, "  ", mark, f" attempt {number} {outcome}"))

    def table(self, values: Mapping[str, object]) -> None:
        """Show names and values."""
        width = max(map(len, values), default=0)
        for name, value in values.items():
            self._print(Text.assemble(_INDENT, "    ", (f"{name:<{width}}", "cyan"), f"  {value}"))

    def show(self, what: RenderableType) -> None:
        """Show something of rich's own, such as a table."""
        self._print(Text())
        self._console.print(what)

    def conclusion(self, text: str) -> None:
        """Tell how it all ended."""
        self._print(Text())
        self._print(Text.assemble(_INDENT, (self._good, "bold green"), " ", (text, "bold")))

    def _print(self, line: Text) -> None:
        line.rstrip()
        self._console.print(line, soft_wrap=True)
