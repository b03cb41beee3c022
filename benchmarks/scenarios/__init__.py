"""The scenarios, by name."""

from __future__ import annotations

from typing import Final

from benchmarks.bench import Scenario

from . import drain, idle, latency, load, ordered, peers, push, scale

SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario("drain", "No-op messages through one worker process", drain.drain),
        Scenario("peers", "No-op messages through one process, by others", peers.peers),
        Scenario("drain2", "No-op messages through two worker processes", drain.drain2),
        Scenario("cost", "What a message costs the worker and the server", drain.cost),
        Scenario("latency", "From a commit to the start of the handler, worker idle", latency.latency),
        Scenario("ordered", "Message groups, in order", ordered.ordered),
        Scenario("peers-latency", "From sending to the start of the handler, by others", peers.peers_latency),
        Scenario("delayed", "A queue with many messages that are not due", latency.delayed),
        Scenario("snapshot", "Full load beside an old snapshot", load.snapshot),
        Scenario("idle", "A worker with nothing to do, and delayed messages", idle.idle),
        Scenario("push16", "Single pushes, many at the same time", push.push16),
        Scenario("push_many", "Many messages by one call", push.push_many),
        Scenario("memory", "Memory over many messages, and with large ones", load.memory),
        Scenario("slow", "A thousand slow handlers at the same time", load.slow),
        Scenario("herd", "Ten idle workers and one message", idle.herd),
        Scenario("scale", "More workers, and more queues", scale.scale),
    )
}
"""In the order in which they are run."""
