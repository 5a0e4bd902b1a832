"""A PostgreSQL server that is away, or dies under writers: nothing that was committed is lost."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from bank_making import ALICE, MODEL, SPEC, kv_of, memory
from postgres_server import PostgresServer

from memlong_agent.errors import StoreError
from memlong_agent.storage import Storage

ROUNDS = 20 if os.environ.get("MEMLONG_TESTS") == "full" else 2
WRITERS = 3


def test_a_server_that_is_away_is_named_and_met_again(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    with Storage.open(tmp_path / "bank", database=own_postgres.url(), timeout_s=2) as bank:
        bank.claim(MODEL, SPEC)
        (stored,) = bank.add(ALICE, [memory("a")])
        own_postgres.stop("immediate")  # as a crash: the log is replayed at the next start
        for _ in range(2):
            with pytest.raises(StoreError, match=r"with postgresql://.*Start the PostgreSQL"):
                bank.add(ALICE, [memory("b")])
        own_postgres.start()
        assert bank.list_memories(ALICE) == [stored]
        assert bank.add(ALICE, [memory("b")])[0].pk > stored.pk
        assert bank.verify() == []


class Writer(threading.Thread):
    """Adds and forgets until the server is gone; knows what it was told is done."""

    numbers = itertools.count()

    def __init__(self, bank: Storage) -> None:
        super().__init__()
        self._bank = bank
        self.added: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.begun: set[str] = set()
        self.ended: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            while True:
                self._write()
        except BaseException as exc:
            self.ended = exc

    def _write(self) -> None:
        text = f"memory {next(self.numbers)}"
        self.begun = {text}
        (stored,) = self._bank.add(ALICE, [memory(text)])
        self.added[stored.id] = text
        if len(self.added) % 3 == 0:
            gone = next(iter(self.added))
            self.begun = {self.added.pop(gone)}
            self._bank.delete(ALICE, [gone], purge=len(self.deleted) % 4 == 3)
            self.deleted.add(gone)


@pytest.mark.timeout(1800)
def test_a_server_that_dies_under_writers_loses_nothing_committed(
    own_postgres: PostgresServer, tmp_path: Path
) -> None:
    """2 deaths under three writers; MEMLONG_TESTS=full makes it 20."""
    url = own_postgres.url()
    kept: dict[str, str] = {}
    gone: set[str] = set()
    unsure: set[str] = set()
    with Storage.open(tmp_path / "bank", database=url, timeout_s=10) as bank:
        bank.claim(MODEL, SPEC)
        for number in range(ROUNDS):
            writers = [Writer(bank) for _ in range(WRITERS)]
            while sum(map(len, [each.deleted for each in writers])) < 2:
                assert any(each.is_alive() for each in writers), writers[0].ended
                time.sleep(0.01)
            time.sleep(0.05 * (number % 5))
            own_postgres.stop("immediate")
            for writer in writers:
                writer.join(60)
                assert isinstance(writer.ended, StoreError), writer.ended
                assert "the PostgreSQL server, " in str(writer.ended)
                kept |= writer.added
                gone |= writer.deleted
                unsure |= writer.begun
            own_postgres.start()
            there = {each.id: each for each in bank.list_memories(ALICE)}  # not opened anew
            assert not gone & set(there)
            for memory_id in [each for each, text in kept.items() if text not in unsure]:
                (kv,) = bank.read_kv(there[memory_id].chunk_pks)
                assert torch.equal(kv.keys, kv_of(kept[memory_id], 5).keys)
            assert {each.text for each in there.values()} - set(kept.values()) <= unsure
    sys.stdout.write(f"{ROUNDS} deaths, {len(kept)} kept, {len(gone)} forgotten\n")
    with Storage.open(tmp_path / "bank", database=url, grace_s=0) as bank:
        bank.sweep()
        assert bank.verify() == []
        chunks = sum(each.chunks for each in bank.list_memories(ALICE))
        assert len([*(tmp_path / "bank" / "kv").rglob("*.safetensors")]) == chunks
