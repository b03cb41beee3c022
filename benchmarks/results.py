"""Results: what was measured, against what, what it should be; and their JSON."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["aim", "must", "no", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a row should reach.

    Attributes:
        must: what it has to reach.
        aim: what it should reach.
        of: what they are said of: the ratio to the baseline, or the value itself.
        lower: whether lower is better.
    """

    must: float
    aim: float
    of: Literal["ratio", "value"] = "ratio"
    lower: bool = False

    def verdict(self, number: float) -> Verdict:
        """Say what a number reaches."""
        for name, bound in (("aim", self.aim), ("must", self.must)):
            if number <= bound if self.lower else number >= bound:
                return "aim" if name == "aim" else "must"
        return "no"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured thing.

    Attributes:
        name: what it is.
        unit: of the values.
        values: one for each round.
        against: what the baseline is; empty if there is none.
        baseline: its values, one for each round, in the same order.
        target: what it should reach, if anything is asked for.
        note: what a reader has to know; also why there are no values.
    """

    name: str
    unit: str
    values: list[float] = field(default_factory=list)
    against: str = ""
    baseline: list[float] = field(default_factory=list)
    target: Target | None = None
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """The ratio of each round."""
        return [value / base for value, base in zip(self.values, self.baseline, strict=False) if base > 0]

    @property
    def judged(self) -> list[float]:
        """What the target is said of, one for each round."""
        return self.values if self.target is not None and self.target.of == "value" else self.ratios

    @property
    def verdict(self) -> Verdict:
        """What the median reaches."""
        if self.target is None or not self.judged:
            return ""
        return self.target.verdict(statistics.median(self.judged))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON, with what can be derived beside it."""
        return {**asdict(self), "ratios": self.ratios, "verdict": self.verdict}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Row:
        """Read what `to_json` wrote."""
        kept = {name: found[name] for name in ("name", "unit", "values", "against", "baseline", "note")}
        target = found["target"]
        return cls(**kept, target=None if target is None else Target(**target))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one scenario.

    Attributes:
        scenario: its name.
        title: what it measures.
        rows: its results.
        samples: all that was measured, as it came.
        seconds: how long it took.
        error: why it failed, if it did.
    """

    scenario: str
    title: str
    rows: list[Row]
    samples: list[dict[str, Any]]
    seconds: float
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "scenario": self.scenario,
            "title": self.title,
            "rows": [row.to_json() for row in self.rows],
            "samples": self.samples,
            "seconds": round(self.seconds, 1),
            "error": self.error,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Outcome:
        """Read what `to_json` wrote."""
        rows = [Row.from_json(row) for row in found["rows"]]
        return cls(**{**found, "rows": rows})


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole run.

    Attributes:
        machine: what it ran on, and with which versions.
        options: how it was called.
        outcomes: one for each scenario.
    """

    machine: dict[str, Any]
    options: dict[str, Any]
    outcomes: list[Outcome]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "format": 1,
            "machine": self.machine,
            "options": self.options,
            "scenarios": [outcome.to_json() for outcome in self.outcomes],
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Report:
        """Read what `to_json` wrote."""
        return cls(
            machine=found["machine"],
            options=found["options"],
            outcomes=[Outcome.from_json(one) for one in found["scenarios"]],
        )
