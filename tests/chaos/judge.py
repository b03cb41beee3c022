"""Says whether what was observed of a queue under faults agrees with what is promised.

What may happen, and what may not:

- Every message is handled to its end by somebody, and is removed once, after an end by its owner of that time:
  the delivery that the removed row's ``read_ct`` tells had ended. A removal by one who is not the owner any
  more shows, since the row then bears the ``read_ct`` of the owner, whose handler still runs.
- A message is delivered again, whether the deliveries overlap or not, only for a reason that the promises
  allow: the earlier owner was killed; nothing passed over its sockets, so that its lease ran out, or its ack did
  not arrive; or the server crashed, which may lose a claim (claims do not wait for the disk). Without such a
  reason near the earlier delivery there is one delivery and no more. A connection that the server terminates
  is no such reason, and neither is a worker that is stopped in the orderly way.
- Two run a message at the same time only for such a reason, and not for long: after a crash of the server until the
  first one's next extension; after silence until that is found out; a killed one until it is dead.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Delivery:
    """A message's handler, from start to end.

    Attributes:
        message: the message's id.
        attempt: its ``read_ct``.
        owner: the process.
        start: when the handler started.
        stop: when it ended, was cancelled or its process was killed.
        ended: whether it came to its end.
    """

    message: int
    attempt: int
    owner: str
    start: float
    stop: float
    ended: bool


@dataclass(frozen=True)
class Fault:
    """A reason for a lost lease or a lost ack.

    Attributes:
        kind: "kill", "silence" or "crash".
        owner: the process that it hit; None if all.
        start: when it began.
        end: when it was over, what it leads to included.
    """

    kind: str
    owner: str | None
    start: float
    end: float


@dataclass(frozen=True)
class Removal:
    """A row that left the queue's table."""

    message: int
    read_ct: int
    at: float


@dataclass(frozen=True)
class Times:
    """Attributes:
    visibility_timeout: of the queue.
    ack: within which time an ack is stored, on a busy machine, if nothing is wrong.
    slack: what else a busy machine may take.
    """

    visibility_timeout: float
    ack: float = 3.0
    slack: float = 3.0


def deliveries(lines: Iterable[str], owner: str, died: float) -> list[Delivery]:
    """Read a process's ledger.

    Args:
        lines: of its file.
        owner: the process.
        died: when it ended, however it did.
    """
    running: dict[tuple[int, int], list[float]] = defaultdict(list)
    found = []
    for line in lines:
        what, message, attempt, at = line.split()
        key = (int(message), int(attempt))
        if what == "start":
            running[key].append(float(at))
        else:
            found.append(Delivery(*key, owner, running[key].pop(0), float(at), ended=what == "end"))
    found.extend(
        Delivery(*key, owner, start, died, ended=False) for key, starts in running.items() for start in starts
    )
    return found


@dataclass
class Verdict:
    """Attributes:
    violations: what breaks a promise, in words; empty if all is well.
    again: how many messages were delivered more than once, by reason.
    overlaps: how many pairs of deliveries overlapped, all for a reason.
    """

    violations: list[str]
    again: dict[str, int]
    overlaps: int


def judge(
    *,
    promised: Iterable[int],
    deliveries: Iterable[Delivery],
    removals: Sequence[Removal],
    faults: Sequence[Fault],
    times: Times,
) -> Verdict:
    """Compare what was observed with what is promised.

    Args:
        promised: ids of the messages that were durably sent.
        deliveries: all that every process noted.
        removals: all rows that left the queue.
        faults: all that may be a reason.
        times: what to reckon with.
    """
    verdict = Verdict([], defaultdict(int), 0)
    by_message: dict[int, list[Delivery]] = defaultdict(list)
    for delivery in sorted(deliveries, key=lambda delivery: delivery.start):
        by_message[delivery.message].append(delivery)
    removed: dict[int, list[Removal]] = defaultdict(list)
    for removal in removals:
        removed[removal.message].append(removal)

    for message in sorted({*promised, *by_message, *removed}):
        mine = by_message[message]
        if not any(delivery.ended for delivery in mine):
            verdict.violations.append(f"message {message} was not handled to its end: {mine}")
        if len(removed[message]) != 1:
            verdict.violations.append(f"message {message} was removed {len(removed[message])} times")
        for removal in removed[message]:
            # A worker may claim again what it holds itself, and go on: the row then counts a claim more than
            # there were deliveries, and the owner is whoever was given the message last.
            last = max((one.attempt for one in mine if one.attempt <= removal.read_ct), default=None)
            if not any(one.ended and one.attempt == last and one.stop <= removal.at for one in mine):
                verdict.violations.append(
                    f"message {message} was removed ({removal}) before its owner had handled it: {mine}"
                )
        for number, later in enumerate(mine[1:], start=1):
            for earlier in mine[:number]:
                _again(earlier, later, faults, times, verdict)
    return verdict


def _again(
    earlier: Delivery, later: Delivery, faults: Sequence[Fault], times: Times, verdict: Verdict
) -> None:
    excuses = [fault for fault in faults if _excuses(fault, earlier, later, times)]
    reasons = {fault.kind for fault in excuses}
    if not excuses:
        verdict.violations.append(f"message {earlier.message}: {later} follows {earlier} without a reason")
        return
    verdict.again["+".join(sorted(reasons))] += 1
    until = min(earlier.stop, later.stop)
    if until > later.start:
        verdict.overlaps += 1
        if until > max(_ends(fault, later, times) for fault in excuses):
            verdict.violations.append(
                f"message {earlier.message}: {earlier} went on for {until - later.start:.1f} s beside {later}"
            )


def _ends(fault: Fault, later: Delivery, times: Times) -> float:
    """Return when an overlap must be over that began with the later delivery."""
    # What a crash made the server forget shows at the first one's next extension.
    known = later.start + times.visibility_timeout / 3 if fault.kind == "crash" else fault.end
    return known + times.slack


def _excuses(fault: Fault, earlier: Delivery, later: Delivery, times: Times) -> bool:
    if fault.owner not in {None, earlier.owner}:
        return False
    # A message is claimed before its handler starts: by less than a visibility timeout, unless it was extended.
    held_from = earlier.start - times.visibility_timeout
    held_until = earlier.stop + times.ack if earlier.ended else math.inf
    return fault.end >= held_from and fault.start <= min(later.start, held_until)
