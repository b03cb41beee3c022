"""Makes Markdown and a plot of results: ``python -m benchmarks.report FILE.json [--plot FILE.svg]``."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .results import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .results import Outcome, Row, Target

_VERDICTS: Final = {"aim": "**aim**", "must": "must", "no": "no", "": ""}
_HEAD: Final = "| What | Measured | Against | Baseline | Ratio | Must | Aim | Reached |\n|---|---|---|---|---|---|---|---|"


def markdown(report: Report) -> str:
    """Return a report as Markdown: a paragraph on the machine, then a table per scenario."""
    parts = [_about(report), *(_scenario(outcome) for outcome in report.outcomes)]
    return "\n\n".join(parts) + "\n"


def number(value: float) -> str:
    """Return a number with three significant digits, or all before the point."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1e}"


def spread(values: Sequence[float], unit: str = "") -> str:
    """Return the median, and the least and the greatest if there are several."""
    if not values:
        return ""
    text = number(statistics.median(values)) + (f" {unit}" if unit else "")
    if len(values) > 1:
        text += f" [{number(min(values))}-{number(max(values))}]"
    return text


def _about(report: Report) -> str:
    machine = report.machine
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    revision = machine["revision"][:12] + (" with changes" if machine["modified"] else "")
    settings = ", ".join(f"{name}={value}" for name, value in machine["settings"].items())
    return (
        f"Measured {machine['measured_at']} on {machine['cores']} cores ({machine['processor']}, "
        f"{machine['system']}), shared by the workers and PostgreSQL {machine['postgresql']} with PGMQ "
        f"{machine['pgmq']}; Python {machine['python']}, event loop {report.options['loop']}; {packages}"
        f"{'; revision ' + revision if revision else ''}. One durable commit takes {machine['commit_ms']} ms. "
        f"Settings: {settings}. Rounds: {report.options['rounds']}, interleaved; each cell is the median "
        "[least-greatest]; ratios are taken within a round."
        + (" **Tiny numbers (--quick): they say nothing about speed.**" if report.options["quick"] else "")
    )


def _scenario(outcome: Outcome) -> str:
    lines = [f"### {outcome.scenario}: {outcome.title}", ""]
    if outcome.error:
        lines.append(f"Failed: {outcome.error}")
    if outcome.rows:
        lines += [_HEAD, *(_row(row) for row in outcome.rows)]
        noted: dict[str, list[str]] = {}
        for row in outcome.rows:
            if row.note and row.name not in noted.setdefault(row.note, []):
                noted[row.note].append(row.name)
        if noted:
            lines += ["", *(f"- {'; '.join(names)}: {note}." for note, names in noted.items())]
    return "\n".join(lines)


def _row(row: Row) -> str:
    cells = [
        row.name,
        spread(row.values, row.unit) or "-",
        row.against,
        spread(row.baseline, row.unit),
        spread(row.ratios),
        "" if row.target is None else _bound(row.target, row.target.must),
        "" if row.target is None else _bound(row.target, row.target.aim),
        _VERDICTS[row.verdict],
    ]
    return "| " + " | ".join(cells) + " |"


def _bound(target: Target, bound: float) -> str:
    return f"{'≤' if target.lower else '≥'} {number(bound)}{' times' if target.of == 'ratio' else ''}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read results, write Markdown and perhaps a plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, help="what `python -m benchmarks --json` wrote")
    parser.add_argument("--markdown", type=Path, help="write there instead of showing it")
    parser.add_argument("--plot", type=Path, help="draw a plot there (SVG or PNG; needs matplotlib)")
    chosen = parser.parse_args(arguments)
    report = Report.from_json(json.loads(chosen.results.read_text(encoding="utf-8")))
    if chosen.markdown:
        chosen.markdown.write_text(markdown(report), encoding="utf-8")
    else:
        sys.stdout.write(markdown(report))
    if chosen.plot:
        from .plot import draw  # noqa: PLC0415 - matplotlib is optional

        draw(report, chosen.plot)


if __name__ == "__main__":
    main()
