"""A random tiny model on disk, and a clock that ticks a minute a reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from memlong_agent import MemLong
from memlong_agent.layout import MemoryLayout
from memlong_agent.testing import tiny_checkpoint


class Ticking:
    """A clock that moves a minute forward whenever it is read."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), layout=MemoryLayout.memlong(4))


Open = Callable[..., MemLong]


@pytest.fixture
def open_memlong(model_folder: Path, tmp_path: Path) -> Iterator[Open]:
    """Opens `MemLong` on one folder bank, again and again; all are closed at the end."""
    opened: list[MemLong] = []

    def open_(**options: Any) -> MemLong:
        chosen = {"bank": tmp_path / "bank", "embedder": "hash", "clock": Ticking(), **options}
        opened.append(MemLong(chosen.pop("model", model_folder), **chosen))
        return opened[-1]

    yield open_
    for memlong in opened:
        memlong.close()
