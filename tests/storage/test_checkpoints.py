"""Checkpoints of old SQLite: none while somebody else holds bank.lock, and nothing lost by waiting.

SQLite before 3.51.3 can lose pages when checkpoints overlap (the WAL-reset bug), which shows too
seldom to wait for. What is tested is what excludes it: in WAL mode only a checkpoint writes to
bank.sqlite, and while this process holds the lock that file stays as it is, however much the others
write. The one exception is SQLite's own: the last connection of all checkpoints when it closes.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bank_making import ALICE, MODEL, SPEC
from children import wait_for
from test_processes import run as run

from memlong_agent.storage import Storage
from memlong_agent.storage.sqlite import _WAL_BYTES

NAMES = ("p0", "p1", "p2")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """bank.lock, as another process that checkpoints would hold it."""
    fd = os.open(folder / "bank.lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def condition(folder: Path) -> tuple[int, int]:
    """Size and time of the database file, which is looked at from outside only."""
    status = os.stat(folder / "bank.sqlite")
    return status.st_size, status.st_mtime_ns


def test_nobody_checkpoints_while_another_process_may(
    run: Callable[[list[dict[str, Any]]], list[int]], tmp_path: Path
) -> None:
    folder, signs = tmp_path / "bank", tmp_path / "signs"
    signs.mkdir()
    with Storage.open(folder) as bank:
        bank.claim(MODEL, SPEC)
    order = {"life": "fill_the_log", "folder": str(folder), "signs": str(signs)}

    def all_are(state: str) -> None:
        for name in NAMES:
            wait_for(signs / f"{name} {state}")

    with ThreadPoolExecutor(1) as pool:
        ends = pool.submit(run, [{**order, "name": name} for name in NAMES])
        all_are("ready held")
        with locked(folder):
            before = condition(folder)
            (signs / "held").touch()
            all_are("ready free")
            assert condition(folder) == before
            assert os.stat(folder / "bank.sqlite-wal").st_size > 2 * _WAL_BYTES
        (signs / "free").touch()
        all_are("done")
        assert condition(folder) != before, "the log is never moved into the database"
        (signs / "end").touch()
        assert ends.result() == [0] * len(NAMES)

    with Storage.open(folder) as bank:
        assert len(bank.list_memories(ALICE)) == len(NAMES) * 7
        assert bank.verify() == []
