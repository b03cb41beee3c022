"""What a change is."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Break:
    """A change that breaks a promise.

    Attributes:
        name: as ``docs/guarantees.md`` calls it.
        promise: the heading there.
        file: below ``src/apalis_pgmq``.
        old: what is replaced; it must occur there exactly once.
        new: what takes its place.
        tests: pytest node ids below ``tests``, with or without parameters; each must fail.
        slow: a run takes the better part of a minute.
        hangs: a test that runs into its time limit has noticed, too.
    """

    name: str
    promise: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    slow: bool = False
    hangs: bool = False
