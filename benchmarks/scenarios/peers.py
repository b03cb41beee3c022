"""Draining against those who do the same job."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks.draining import drain_ours
from benchmarks.peering import (
    PEERS,
    PeerError,
    drain_peer,
    installed,
    latency_of_ours,
    latency_of_peer,
    reason,
)
from benchmarks.processes import ProcessError
from benchmarks.results import Row

from .drain import messages_per_round, rates

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.bench import Bench, Measure, Sample

_QUICK: Final = 500
_OURS: Final = "apalis-pgmq"


async def peers(bench: Bench) -> list[Row]:
    """No-op messages through one process, against each peer that can be installed."""
    failed: dict[str, str] = {}
    systems: dict[str, Measure] = {_OURS: partial(drain_ours, bench, messages_per_round(bench))}
    for name, python in (await _installed(bench, failed)).items():
        messages = _QUICK if bench.options.quick else PEERS[name].messages
        systems[name] = partial(_try, name, partial(drain_peer, bench, name, python, messages), failed)
    found = await bench.rounds(systems)
    ours = rates(found[_OURS])
    rows = []
    for name in bench.options.peers:
        # A round in which the peer failed has no ratio.
        pairs = [
            (mine, sample)
            for mine, sample in zip(ours, found.get(name, []), strict=False)
            if "rate" in sample
        ]
        notes = [_versions(pairs[0][1])] if pairs else []
        if name in failed:
            notes.append(failed[name])
        rows.append(
            Row(
                name=f"drain against {name}",
                unit="messages/s",
                values=[mine for mine, _ in pairs],
                against=PEERS[name].title,
                baseline=rates([sample for _, sample in pairs]),
                target=PEERS[name].target,
                note="; ".join(notes),
            )
        )
    return rows


async def peers_latency(bench: Bench) -> list[Row]:
    """From sending to the start of the handler, idle worker, against each peer that can be installed."""
    seconds = bench.size(10, 2)
    failed: dict[str, str] = {}
    systems: dict[str, Measure] = {_OURS: partial(latency_of_ours, bench, seconds)}
    for name, python in (await _installed(bench, failed)).items():
        measure = partial(latency_of_peer, bench, name, python, seconds)
        systems[name] = partial(_try, name, measure, failed)
    found = await bench.rounds(systems)
    rows = []
    for name in bench.options.peers:
        pairs = [pair for pair in zip(found[_OURS], found.get(name, []), strict=False) if "p50" in pair[1]]
        rows += [
            Row(
                name=f"latency against {name}, {percent}",
                unit="ms",
                values=[ours[percent] for ours, _ in pairs],
                against=PEERS[name].title,
                baseline=[theirs[percent] for _, theirs in pairs],
                note=failed.get(name, ""),
            )
            for percent in ("p50", "p99")
        ]
    return rows


async def _installed(bench: Bench, failed: dict[str, str]) -> dict[str, Path]:
    """Return the interpreters of the peers; note why others cannot be installed."""
    found = {}
    for name in bench.options.peers:
        try:
            bench.say(f"installing {name}, unless it is there")
            found[name] = await installed(name, bench.options.venvs)
        except (PeerError, OSError) as error:
            failed[name] = reason(error)
    return found


async def _try(name: str, measure: Measure, failed: dict[str, str]) -> Sample:
    """Measure a peer; note why it fails, if it does, so that the others are still measured."""
    try:
        return await measure()
    except ProcessError as error:
        failed[name] = reason(error)
        return {"error": str(error)}


def _versions(sample: Sample) -> str:
    cost = f"{sample['cpu'] / sample['messages'] * 1e6:,.0f} µs of processor time per message"
    if "transactions" in sample:
        cost += f", {sample['transactions'] / sample['messages']:.3f} transactions"
    versions = ", ".join(f"{package} {version}" for package, version in sample["versions"].items())
    return f"{versions}; {cost}, {sample['rss_peak']:.0f} MB"
