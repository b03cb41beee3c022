"""The benchmark harness works: tiny numbers, which say nothing about speed."""

import json
from functools import partial
from pathlib import Path
from typing import cast

import pytest

pytest.importorskip("pgmq", reason="the harness installs PGMQ from this package")

from benchmarks import __main__ as command_line
from benchmarks import report
from benchmarks.bench import Bench, Options
from benchmarks.processes import ProcessError, run
from benchmarks.results import Outcome, Report, Row, Target
from benchmarks.scenarios import SCENARIOS
from benchmarks.server import Server


def test_drain_is_measured_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, tables = tmp_path / "results.json", tmp_path / "results.md"
    arguments = ["drain", "--quick", "--peers", "none"]

    code = command_line.main([*arguments, "--json", str(results), "--markdown", str(tables)])

    assert code == 0, capsys.readouterr().err
    found = json.loads(results.read_text())
    assert {"postgresql", "pgmq", "python", "cores", "settings", "revision", "commit_ms"} <= set(
        found["machine"]
    )
    assert found["machine"]["settings"]["fsync"] == "on"
    assert found["options"]["rounds"] == 1
    (scenario,) = found["scenarios"]
    assert scenario["scenario"] == "drain"
    assert not scenario["error"]
    row = scenario["rows"][0]
    assert row["target"] == {"must": 0.75, "aim": 1.0, "of": "ratio", "lower": False}
    assert len(row["values"]) == len(row["baseline"]) == len(row["ratios"]) == 1
    assert row["ratios"][0] == row["values"][0] / row["baseline"][0]
    assert row["verdict"] in {"aim", "must", "no"}
    samples = scenario["samples"]
    assert [sample["system"] for sample in samples][:2] == ["apalis-pgmq", "raw"]
    for sample in samples:
        assert {"rate", "cpu", "rss_peak", "transactions"} <= set(sample)
    assert tables.read_text() == report.markdown(Report.from_json(found))
    assert "| drain |" in tables.read_text()


@pytest.mark.parametrize("scenario", ["push_many", "producer", "outbox", "ordered"])
def test_whatever_sends_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scenario: str
) -> None:
    results = tmp_path / "results.json"

    code = command_line.main([scenario, "--quick", "--json", str(results)])

    assert code == 0, capsys.readouterr().err
    (found,) = json.loads(results.read_text())["scenarios"]
    assert found["scenario"] == scenario
    assert not found["error"]
    assert found["rows"]


async def test_every_second_round_runs_the_other_way_round(tmp_path: Path) -> None:
    order = []

    async def measure(name: str) -> dict[str, float]:
        order.append(name)
        return {"rate": len(order)}

    options = Options(rounds=3, quick=True, loop="asyncio", peers=(), venvs=tmp_path, hold=1)
    bench = Bench(cast(Server, None), options)
    found = await bench.rounds({name: partial(measure, name) for name in "abc"})

    assert "".join(order) == "abccbaabc"
    assert [sample["rate"] for sample in found["a"]] == [1, 6, 7]
    assert [sample["round"] for sample in bench.samples] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_every_scenario_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in SCENARIOS)


@pytest.mark.parametrize("arguments", [["nothing"], ["drain", "--peers", "nobody"]])
def test_what_does_not_exist_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="there is no"):
        command_line.main(arguments)


@pytest.mark.parametrize(
    ("median", "verdict"), [(0.5, "aim"), (1, "aim"), (1.5, "must"), (2, "must"), (2.1, "no")]
)
def test_a_row_is_judged_by_the_median_of_its_ratios(median: float, verdict: str) -> None:
    target = Target(must=2, aim=1, lower=True)
    row = Row(name="r", unit="ms", values=[0, median * 4, 1000], baseline=[4, 4, 4], target=target)
    assert row.verdict == verdict


def test_a_row_without_values_has_no_verdict() -> None:
    assert Row(name="r", unit="ms", target=Target(must=1, aim=1), note="not installed").verdict == ""


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = Target(must=2, aim=1, lower=True)
    rows = [Row(name="r", unit="ms", values=[3], baseline=[2], target=target)]
    sample = {"system": "apalis-pgmq", "rate": 1.0}
    outcome = Outcome(scenario="drain", title="t", rows=rows, samples=[sample], seconds=1)
    results, plot = tmp_path / "results.json", tmp_path / "plot.svg"
    machine = {
        **dict.fromkeys(("measured_at", "cores", "processor", "system", "postgresql", "pgmq", "python"), "x"),
        "packages": {},
        "settings": {},
        "revision": "",
        "modified": False,
        "commit_ms": 1,
    }
    options = {"loop": "asyncio", "rounds": 1, "quick": True}
    results.write_text(json.dumps(Report(machine=machine, options=options, outcomes=[outcome]).to_json()))

    report.main([str(results), "--markdown", str(tmp_path / "tables.md"), "--plot", str(plot)])

    assert plot.read_text().startswith("<?xml")


async def test_what_a_failed_process_wrote_is_told() -> None:
    job = {"url": "postgresql://nobody@127.0.0.1:1/none", "overlap": False}
    with pytest.raises(ProcessError, match=r"(?s)raw_drain ended with 1.*Error"):
        await run("measured.raw_drain", job, within=30)
