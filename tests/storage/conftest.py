from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bank_making import EMBEDDER, MODEL, SPEC, Clock

from memlong_agent.storage import Key, Storage


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["folder", "memory", "encrypted", "postgres"])
def bank(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Storage]:
    """A claimed bank: in a folder, in memory, encrypted in a folder, and in PostgreSQL."""
    path = ":memory:" if request.param == "memory" else tmp_path / "bank"
    key = Key(bytes(32)) if request.param == "encrypted" else None
    database = None
    if request.param == "postgres":
        database = request.getfixturevalue("postgres").url()
    with Storage.open(path, database=database, clock=clock, key=key) as storage:
        storage.claim(MODEL, SPEC)
        storage.claim_retrieval(EMBEDDER)
        yield storage
        assert storage.verify() == []


@pytest.fixture
def folder_bank(tmp_path: Path, clock: Clock) -> Iterator[Storage]:
    with Storage.open(tmp_path / "bank", clock=clock, timeout_s=5) as storage:
        storage.claim(MODEL, SPEC)
        yield storage
