"""A random tiny model on disk, and a clock that ticks a minute a reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bank_kinds import Kind

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
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    """The bank of the test; a plain one in SQLite where the test does not say `on`."""
    return Kind.of(getattr(request, "param", "sqlite"), tmp_path / "bank", request)


@pytest.fixture
def open_memlong(model_folder: Path, kind: Kind) -> Iterator[Open]:
    """Opens `MemLong` on one bank, again and again, or on another that is named; all are closed at
    the end."""
    opened: list[MemLong] = []

    def open_(**options: Any) -> MemLong:
        usual = {} if "bank" in options else kind.options
        chosen = {**usual, "embedder": "hash", "clock": Ticking(), **options}
        opened.append(MemLong(chosen.pop("model", model_folder), **chosen))
        return opened[-1]

    yield open_
    for memlong in opened:
        memlong.close()
