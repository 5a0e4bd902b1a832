from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bank_making import EMBEDDER, MODEL, SPEC, Clock

from memlong_agent.storage import Storage


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["folder", "memory", "postgres"])
def bank(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Storage]:
    """A claimed bank, once in a folder and once in memory."""
    path = ":memory:" if request.param == "memory" else tmp_path / "bank"
    database = None
    if request.param == "postgres":
        database = request.getfixturevalue("postgres").url()
    with Storage.open(path, database=database, clock=clock) as storage:
        storage.claim(MODEL, SPEC)
        storage.claim_retrieval(EMBEDDER)
        yield storage
        assert storage.verify() == []


@pytest.fixture
def folder_bank(tmp_path: Path, clock: Clock) -> Iterator[Storage]:
    with Storage.open(tmp_path / "bank", clock=clock, timeout_s=5) as storage:
        storage.claim(MODEL, SPEC)
        yield storage
