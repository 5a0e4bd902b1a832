"""Archives of many memories: bounded memory, and what others may do meanwhile."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from archive_forging import ANNA, claimed, export, restore
from bank_making import memory
from sqlalchemy import event

from memlong_agent.errors import StoreLockedError
from memlong_agent.storage import Storage
from memlong_agent.storage.archive import lines


def archive_of(chunks: int, folder: Path) -> Path:
    """An archive of so many chunks, four to a memory."""
    path = folder / f"of {chunks}"
    with claimed(folder / f"source of {chunks}") as bank:
        for start in range(0, chunks // 4, 250):
            numbers = range(start, min(start + 250, chunks // 4))
            bank.add(ANNA, [memory(*(f"word{n} part {p}" for p in range(4))) for n in numbers])
        export(bank, path)
    return path


def taken_in(path: Path, bank: Storage) -> int:
    """Restore; returns the most bytes that were allocated meanwhile."""
    tracemalloc.start()
    try:
        restore(bank, path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part is held at a time: of four times the chunks in as large parts, the same peak."""
    monkeypatch.setattr(lines, "MAX_LINES", 50)
    with claimed(tmp_path / "warm") as bank:
        taken_in(archive_of(40, tmp_path), bank)  # what is made once is made now
    peaks = []
    for chunks in (400, 1600):
        with claimed(tmp_path / f"bank of {chunks}") as bank:
            peaks.append(taken_in(archive_of(chunks, tmp_path), bank))
            assert bank.stats()[ANNA].chunks == chunks
            assert bank.verify() == []
    # A chunk that is held takes 1,700 bytes.
    assert peaks[1] < peaks[0] + 1200 * 200, peaks


@contextmanager
def held_while_rows_are_written(bank: Storage) -> Iterator[tuple[threading.Event, threading.Event]]:
    """(reached, go on): the writing of rows stops before the first chunk, inside the lock."""
    reached, go_on = threading.Event(), threading.Event()

    def wait(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO chunks"):
            reached.set()
            assert go_on.wait(60)

    event.listen(bank._db.engine, "before_cursor_execute", wait)
    try:
        yield reached, go_on
    finally:
        go_on.set()
        event.remove(bank._db.engine, "before_cursor_execute", wait)


def test_readers_go_on_and_writers_are_told_while_rows_are_written(tmp_path: Path) -> None:
    path = archive_of(40, tmp_path)
    with (
        claimed(tmp_path / "bank") as bank,
        claimed(tmp_path / "bank", timeout_s=0.1) as other,
        ThreadPoolExecutor(1) as thread,
    ):
        other.add(ANNA, [memory("the house is blue")])
        with held_while_rows_are_written(bank) as (reached, go_on):
            done = thread.submit(restore, bank, path)
            assert reached.wait(60)
            assert len(other.list_memories(ANNA)) == 1
            assert [hit.chunk.text for hit in other.search(ANNA, "house")] == ["the house is blue"]
            with pytest.raises(StoreLockedError, match="busy"):
                other.add(ANNA, [memory("the boat is red")])
            go_on.set()
            assert done.result().memories == 10
        assert len(other.list_memories(ANNA)) == 11
        other.add(ANNA, [memory("the boat is red")])
        assert other.verify() == []
