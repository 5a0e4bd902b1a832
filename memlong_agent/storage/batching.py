"""Long lists in parts that one statement takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_BATCH = 500  # values per statement, well below SQLite's oldest limit of 999 variables


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Lists of at most 500, for `IN (...)` and `VALUES`."""
    left = list(items)
    for start in range(0, len(left), _BATCH):
        yield left[start : start + _BATCH]
