"""Draws results: how near each row comes to its target, and how fast everybody drains a queue."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from .results import Report, Row

_COLOURS: Final = {"aim": "#2a7f4f", "must": "#c9a227", "no": "#b23a48"}
_MOST: Final = 10.0
"""Bars end there; how far beyond its aim a row is does not matter."""


def draw(report: Report, path: Path) -> None:
    """Draw a report into a file, whose suffix says in which format."""
    judged = [(outcome.scenario, row) for outcome in report.outcomes for row in outcome.rows if row.verdict]
    rates = _rates(report)
    heights = [max(1, len(judged)), max(1, len(rates))]
    with mpl.rc_context({"svg.hashsalt": "apalis-pgmq", "font.size": 9}):
        figure = Figure(figsize=(10, 1.8 + 0.32 * sum(heights)), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=heights)
        _targets(above, judged)
        _speeds(below, rates)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _share(row: Row, number: float) -> float:
    """Return how near a number comes to a row's aim: 1 is the aim, more is better."""
    assert row.target is not None
    aim = row.target.aim
    if row.target.lower:
        return _MOST if number <= 0 else min(_MOST, aim / number)
    return min(_MOST, number / aim)


def _targets(axes: Axes, judged: list[tuple[str, Row]]) -> None:
    axes.set_title("How near to its aim (1 = aim, mark = must), higher is better")
    for position, (_, row) in enumerate(judged):
        assert row.target is not None
        found = sorted(_share(row, number) for number in row.judged)
        middle = _share(row, statistics.median(row.judged))
        axes.barh(position, middle, color=_COLOURS[row.verdict], height=0.6)
        axes.plot([found[0], found[-1]], [position, position], color="black", linewidth=1)
        axes.plot([_share(row, row.target.must)], [position], marker="|", color="black", markersize=12)
    axes.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(judged)), [f"{scenario}: {row.name}" for scenario, row in judged])
    axes.invert_yaxis()
    axes.set_xscale("log")


def _rates(report: Report) -> list[tuple[str, list[float]]]:
    """Return the drain rates of each system, fastest first."""
    found: dict[str, list[float]] = {}
    for outcome in report.outcomes:
        if outcome.scenario in ("drain", "peers"):
            for sample in outcome.samples:
                if "rate" in sample:
                    found.setdefault(sample["system"], []).append(sample["rate"])
    return sorted(found.items(), key=lambda one: -statistics.median(one[1]))


def _speeds(axes: Axes, rates: list[tuple[str, list[float]]]) -> None:
    axes.set_title("No-op messages per second, one process")
    for position, (name, values) in enumerate(rates):
        middle = statistics.median(values)
        axes.barh(position, middle, color="#3b6ea5" if name == "apalis-pgmq" else "#9aa5b1", height=0.6)
        axes.plot([min(values), max(values)], [position, position], color="black", linewidth=1)
        axes.text(middle, position + 0.12, f" {middle:,.0f}", fontsize=7)
    axes.margins(x=0.15)
    axes.set_yticks(range(len(rates)), [name for name, _ in rates])
    axes.invert_yaxis()
    axes.set_xscale("log")
