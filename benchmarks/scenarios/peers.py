"""Draining against those who do the same job."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks.draining import drain_ours
from benchmarks.peering import PEERS, PeerError, drain_peer, installed, reason
from benchmarks.processes import ProcessError
from benchmarks.results import Row

from .drain import messages_per_round, rates

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.bench import Bench, Sample

_QUICK: Final = 500
_OURS: Final = "apalis-pgmq"


async def peers(bench: Bench) -> list[Row]:
    """No-op messages through one process, against each peer that can be installed."""
    failed: dict[str, str] = {}
    systems = {_OURS: partial(drain_ours, bench, messages_per_round(bench))}
    for name in bench.options.peers:
        try:
            bench.say(f"installing {name}, unless it is there")
            python = await installed(name, bench.options.venvs)
        except (PeerError, OSError) as error:
            failed[name] = reason(error)
            continue
        systems[name] = partial(_drain, bench, name, python, failed)
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


async def _drain(bench: Bench, name: str, python: Path, failed: dict[str, str]) -> Sample:
    messages = _QUICK if bench.options.quick else PEERS[name].messages
    try:
        return await drain_peer(bench, name, python, messages)
    except ProcessError as error:
        failed[name] = reason(error)
        return {"error": str(error)}


def _versions(sample: Sample) -> str:
    cost = f"{sample['cpu'] / sample['messages'] * 1e6:,.0f} µs of processor time per message"
    if "transactions" in sample:
        cost += f", {sample['transactions'] / sample['messages']:.3f} transactions"
    versions = ", ".join(f"{package} {version}" for package, version in sample["versions"].items())
    return f"{versions}; {cost}, {sample['rss_peak']:.0f} MB"
