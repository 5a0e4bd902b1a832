"""Two things timed side by side: A B A B ... in one process, so that drift hits both alike.

In: two functions. Out: seconds of each call, in pairs, and their ratios. Knows no model; whether a
call is finished when it returns is told to it by `settle` (a GPU works on after the return).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

Action = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Seconds of both, by round; the i-th of one was measured beside the i-th of the other."""

    ours_s: tuple[float, ...]
    theirs_s: tuple[float, ...]

    @property
    def slowdowns(self) -> list[float]:
        """Our time over theirs, by round."""
        return [ours / theirs for ours, theirs in zip(self.ours_s, self.theirs_s, strict=True)]

    @property
    def speedups(self) -> list[float]:
        """Their time over ours, by round."""
        return [theirs / ours for ours, theirs in zip(self.ours_s, self.theirs_s, strict=True)]


def nothing() -> None:
    """The `settle` of calls that are finished when they return."""


def timed(action: Action, settle: Action = nothing) -> float:
    """Seconds of one call, until its work is done."""
    settle()
    start = time.perf_counter()
    action()
    settle()
    return time.perf_counter() - start


def interleaved(
    ours: Action, theirs: Action, rounds: int, *, warmup: int = 0, settle: Action = nothing
) -> Pairs:
    """Time `rounds` pairs of calls, ours first in each, after `warmup` pairs that are not timed."""
    for _ in range(warmup):
        ours()
        theirs()
    taken = [(timed(ours, settle), timed(theirs, settle)) for _ in range(rounds)]
    return Pairs(tuple(pair[0] for pair in taken), tuple(pair[1] for pair in taken))
