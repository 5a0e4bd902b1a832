"""Which chunks go when an owner's memory is full: pure functions over ages and counters.

In: what storage knows of each chunk. Out: keys of the chunks to delete. Nothing is deleted here;
no text, no disk, no clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from memlong_agent.config import Eviction
from memlong_agent.storage import ChunkAge


def victims(
    ages: Sequence[ChunkAge],
    capacity_tokens: int,
    policy: Eviction = "counter",
    safe: Collection[int] = (),
) -> list[int]:
    """Keys of the chunks to evict, in the order they go; none while all fit the capacity.

    Above the capacity, chunks go until at most half of it is used or only safe ones are left.

    * `counter`: the oldest 10 % (by count, rounded down) go whatever their counter; the newest 10 %
      (rounded up) are safe; the middle goes by (counter, age), least recalled first. The last one
      written is the newest, whatever the clock said, and always stays.
    * `fifo`: in the order they were written.
    * `lru`: by their last recall; never recalled counts as recalled when made.

    Chunks in `safe` and those a running turn has pending never go.
    """
    left = sum(each.tokens for each in ages)
    if left <= capacity_tokens:
        return []
    kept = {each.pk for each in ages if each.pending is not None} | set(safe)
    if policy == "counter":
        certain, candidates = _by_counter(ages)
    else:
        certain = []
        candidates = sorted(ages, key=_written if policy == "fifo" else _used)
    gone = [each for each in certain if each.pk not in kept]
    left -= sum(each.tokens for each in gone)
    gone += _until_half((c for c in candidates if c.pk not in kept), left, capacity_tokens)
    return [each.pk for each in gone]


def _by_counter(ages: Sequence[ChunkAge]) -> tuple[list[ChunkAge], list[ChunkAge]]:
    """Those that go in any case, and the middle in the order it goes."""
    last = max(each.pk for each in ages)
    by_age = sorted(ages, key=lambda each: (each.pk == last, each.created_at, each.pk))
    oldest, newest = len(by_age) // 10, -(-len(by_age) // 10)
    middle = by_age[oldest : len(by_age) - newest]
    # Sorting is stable: of equal counters the older comes first.
    return by_age[:oldest], sorted(middle, key=lambda each: each.counter)


def _until_half(chunks: Iterable[ChunkAge], left: int, capacity_tokens: int) -> list[ChunkAge]:
    gone: list[ChunkAge] = []
    for each in chunks:
        if 2 * left <= capacity_tokens:
            break
        gone.append(each)
        left -= each.tokens
    return gone


def _written(chunk: ChunkAge) -> int:
    return chunk.pk  # keys rise with every write; created_at may be set back by an import


def _used(chunk: ChunkAge) -> tuple[datetime, int]:
    return chunk.last_recalled_at or chunk.created_at, chunk.pk
