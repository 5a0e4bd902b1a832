"""Who may recall what, and what a recall leaves behind."""

from __future__ import annotations

from dataclasses import astuple, replace
from datetime import timedelta

import numpy as np
import pytest

from memlong_agent.errors import (
    MemoryNotFoundError,
)
from memlong_agent.storage import Owner, OwnerStats, RecallMark, Storage
from memlong_agent.testing.contract.making import (
    ALICE,
    BOB,
    NOON,
    SPEC,
    Clock,
    chunk,
    equal,
    memory,
    vector_of,
)


class Recalling:
    """Who may recall what, and what a recall leaves behind."""

    def test_lists_are_by_time(self, bank: Storage) -> None:
        times = [NOON + timedelta(hours=h) for h in (2, 0, 1)]
        bank.add(ALICE, [memory(str(t.hour), created_at=t, session="s") for t in times])
        assert [each.text for each in bank.list_memories(ALICE)] == ["14", "13", "12"]
        assert next(each.text for each in bank.list_memories(ALICE, newest_first=False)) == "12"
        assert [each.text for each in bank.list_memories(ALICE, "s", limit=1)] == ["14"]
        assert bank.list_memories(ALICE, "t") == bank.list_memories(BOB) == []
        latest = bank.latest_exchange(ALICE, "s")
        assert latest is not None and latest.text == "13"  # written last
        assert bank.latest_exchange(ALICE, "t") is None and bank.latest_exchange(BOB, "s") is None
        ages = bank.chunk_ages(ALICE)
        assert [age.created_at for age in ages] == sorted(times)

    def test_latest_exchange_is_a_finished_exchange(self, bank: Storage) -> None:
        bank.add(ALICE, [memory("first", session="s")])
        later = {"session": "s", "created_at": NOON + timedelta(hours=1)}
        bank.add(ALICE, [memory("x", role="user", **later), memory("y", pending="t", **later)])
        latest = bank.latest_exchange(ALICE, "s")
        assert latest is not None and latest.text == "first"

    def test_recall_reads_only_what_may_be_recalled(self, bank: Storage, clock: Clock) -> None:
        stored = bank.add(
            ALICE,
            [
                memory("plain fact", session="s"),
                memory("old fact", expires_at=NOON + timedelta(minutes=1)),
                memory("withheld fact", recallable=False),
                memory("running fact", pending="turn-1"),
            ],
        )
        pks = [each.chunk_pks[0] for each in stored]
        bank.add(ALICE, [memory("ballast")] * 9)

        def seen(turn: str | None = None) -> set[str]:
            by_key = {each.text.split()[0] for each in bank.recallable(ALICE, pks, turn=turn)}
            hits = [hit.pk for hit in bank.search(ALICE, "plain old withheld running", turn=turn)]
            by_word = {each.text.split()[0] for each in bank.chunks(ALICE, hits)}
            every = [int(pk) for pk in bank.recallable_pks(ALICE, turn=turn) if pk in pks]
            assert by_key == by_word == {each.text.split()[0] for each in bank.chunks(ALICE, every)}
            return by_key

        assert seen() == {"plain", "old"}
        assert seen("turn-1") == {"plain", "old", "running"}
        assert seen("turn-2") == {"plain", "old"}
        clock.pass_s(60)
        assert seen() == {"plain"}
        bank.set_recallable(ALICE, stored[2].id, True)
        bank.set_recallable(ALICE, stored[0].id, False)
        assert seen() == {"withheld"}
        assert list(bank.recallable_pks(ALICE, session="s")) == []
        assert len(bank.chunks(ALICE, pks)) == 4

    def test_counters_rise_once_a_turn(self, bank: Storage, clock: Clock) -> None:
        (stored,) = bank.add(ALICE, [memory("a", "b")])
        (bobs,) = bank.add(BOB, [memory("bob")])
        a, b = stored.chunk_pks
        clock.pass_s(5)
        bank.record_recalls(ALICE, "t1", [RecallMark(a, 0, 0.9, 0.2), RecallMark(a, 1, 0.8)])
        bank.record_recalls(
            ALICE, "t1", [RecallMark(a, 2, 0.7), RecallMark(bobs.chunk_pks[0], 0, 1)]
        )
        bank.record_recalls(ALICE, "t2", [RecallMark(a, 0, 0.9), RecallMark(10**6, 1, 0.1)])
        first, second = bank.chunk_ages(ALICE)
        assert (first.pk, first.counter, first.last_recalled_at) == (a, 2, clock.now)
        assert (second.pk, second.counter, second.last_recalled_at) == (b, 0, None)
        assert bank.chunk_ages(BOB)[0].counter == 0

    def test_a_bank_without_vectors(self, bank: Storage) -> None:
        without = replace(memory("a"), chunks=[replace(chunk("a"), vector=None)])
        bank.add(ALICE, [without])
        assert list(bank.vectors(ALICE)) == []
        assert len(bank.search(ALICE, "hello")) == 0
        assert bank.verify() == []

    def test_owners_are_strangers(self, bank: Storage) -> None:
        owners = [
            ALICE,
            BOB,
            Owner("default", "session", "alice"),
            Owner("other", "user", "alice"),
            Owner("default", "user", "' OR 1=1 --"),
        ]
        ids = {}
        for owner in owners:
            (stored,) = bank.add(owner, [memory(f"secret of {owner}", session="s")])
            ids[owner] = stored
        for owner in owners:
            assert [each.id for each in bank.list_memories(owner, "s")] == [ids[owner].id]
            assert bank.recallable_pks(owner).tolist() == list(ids[owner].chunk_pks)
            assert [hit.pk for hit in bank.search(owner, "secret")] == list(ids[owner].chunk_pks)
            for other in owners:
                if other != owner:
                    assert bank.chunks(owner, ids[other].chunk_pks) == []
                    with pytest.raises(MemoryNotFoundError):
                        bank.get(owner, ids[other].id)
                    with pytest.raises(MemoryNotFoundError):
                        bank.delete(owner, [ids[other].id])
        assert len(bank.stats()) == len(owners)

    def test_stats_count_rows_and_bytes(self, bank: Storage) -> None:
        bank.add(ALICE, [memory("a", "b"), memory("c")])
        payload = 3 * (5 * SPEC.bytes_per_token + bank._blobs.cipher.overhead)
        assert bank.stats(ALICE) == {ALICE: OwnerStats(2, 3, 15, 3 * 4096 + payload)}
        assert (bank.tokens(ALICE), bank.tokens(BOB)) == (15, 0)
        assert {type(each) for each in astuple(bank.stats(ALICE)[ALICE])} == {int}

    def test_vectors_stream_in_batches_and_by_key(self, bank: Storage) -> None:
        stored = bank.add(ALICE, [memory(f"fact {i}") for i in range(7)])
        bank.add(BOB, [memory("bob")])
        parts = list(bank.vectors(ALICE, batch=3))
        assert [len(pks) for pks, _ in parts] == [3, 3, 1]
        pks = np.concatenate([pks for pks, _ in parts])
        matrix = np.concatenate([matrix for _, matrix in parts])
        assert pks.dtype == np.int64 and matrix.dtype == np.float32 and matrix.shape == (7, 6)
        assert pks.tolist() == [each.chunk_pks[0] for each in stored]
        assert np.array_equal(matrix[4], vector_of("fact 4"))
        (rest,) = bank.vectors(ALICE, after_pk=int(pks[4]))
        assert rest[0].tolist() == pks[5:].tolist()
        some, rows = bank.vectors_of(ALICE, [int(pks[5]), int(pks[1]), 10**6])
        assert some.tolist() == [pks[1], pks[5]] and np.array_equal(rows, matrix[[1, 5]])
        assert bank.vectors_of(BOB, pks.tolist())[0].tolist() == []

    def test_reading_changes_nothing(self, bank: Storage) -> None:
        (stored,) = bank.add(ALICE, [memory("velora", "more", metadata={"k": ["v"]})])

        def state() -> tuple[object, ...]:
            return (
                bank.stats(),
                bank.chunk_ages(ALICE),
                bank.last_event(ALICE),
                bank.get(ALICE, stored.id),
            )

        before = state()
        bank.search(ALICE, "velora")
        bank.recallable(ALICE, stored.chunk_pks)
        bank.chunks(BOB, stored.chunk_pks)
        list(bank.vectors(ALICE))
        bank.read_kv(stored.chunk_pks)
        assert bank.search(Owner("default", "user", "new"), "velora") == []
        assert state() == before

    def test_what_was_given_out_is_the_callers_own(self, bank: Storage) -> None:
        new = memory("a", metadata={"k": ["v"]})
        (stored,) = bank.add(ALICE, [new])
        new.chunks[0].kv.keys.zero_()
        (kv,) = bank.read_kv(stored.chunk_pks)
        assert equal(kv, "a")
        kv.values.zero_()
        stored.metadata["k"].append("changed")
        assert equal(bank.read_kv(stored.chunk_pks)[0], "a")
        assert bank.get(ALICE, stored.id).metadata == {"k": ["v"]}
        with pytest.raises(AttributeError):
            stored.text = "b"  # type: ignore[misc]  # frozen

    def test_a_clock_that_jumps_back_breaks_no_order(self, bank: Storage, clock: Clock) -> None:
        (first,) = bank.add(ALICE, [memory("first", session="s")])
        clock.pass_s(-86_400)
        (second,) = bank.add(ALICE, [memory("second", session="s")])
        assert second.pk > first.pk
        assert [event.pk for event in bank.events_after(ALICE, 0)] == [
            *first.chunk_pks,
            *second.chunk_pks,
        ]
        assert [each.text for each in bank.list_memories(ALICE)] == ["first", "second"]
        written = bank.list_memories(ALICE, by_time=False)
        assert [each.text for each in written] == ["second", "first"]
        latest = bank.latest_exchange(ALICE, "s")
        assert latest is not None and latest.text == "second"
        assert len(bank.recallable_pks(ALICE)) == 2 and bank.sweep().memories == 0
