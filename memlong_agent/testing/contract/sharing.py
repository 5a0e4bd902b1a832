"""Threads, processes, crashes: what others see, and when."""

from __future__ import annotations

import threading

import pytest

from memlong_agent.errors import (
    StoreError,
)
from memlong_agent.storage import Owner, Storage
from memlong_agent.testing.contract.making import (
    ALICE,
    BOB,
    Opener,
    equal,
    memory,
)


class Sharing:
    """Threads, processes, crashes: what others see, and when."""

    def test_events_let_an_index_follow(self, bank: Storage) -> None:
        assert bank.last_event(ALICE) == 0
        first, second = bank.add(ALICE, [memory("a", "b"), memory("c")])
        bank.add(BOB, [memory("bob")])
        stamp = bank.last_event(ALICE)
        bank.delete(ALICE, [second.id])
        replaced = bank.replace(ALICE, first.id, memory("d"))
        events = bank.events_after(ALICE, stamp)
        expected = [
            ("delete", second.chunk_pks[0]),
            *(("delete", pk) for pk in first.chunk_pks),
            ("add", replaced.chunk_pks[0]),
        ]
        assert [(event.op, event.pk) for event in events] == expected
        assert bank.last_event(ALICE) == events[-1].seq
        index: set[int] = set()
        for event in bank.events_after(ALICE, 0):
            (index.add if event.op == "add" else index.remove)(event.pk)
        assert index == set(bank.recallable_pks(ALICE).tolist())

    def test_a_closed_bank_says_so(self, open_bank: Opener) -> None:
        bank = open_bank()
        bank.close()
        with pytest.raises(StoreError, match=r"closed. Open it again"):
            bank.stats()

    def test_threads_write_and_read_at_once(self, bank: Storage) -> None:
        failures: list[BaseException] = []

        def work(name: str) -> None:
            owner = Owner("default", "user", name)
            try:
                for i in range(8):
                    (stored,) = bank.add(owner, [memory(f"{name} {i}", "more")])
                    assert equal(bank.read_kv(stored.chunk_pks)[0], f"{name} {i}")
                    assert len(bank.list_memories(owner)) == i + 1
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=work, args=(f"user{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert sum(each.chunks for each in bank.stats().values()) == 64
