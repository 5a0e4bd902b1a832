"""What is forgotten is gone, all of it, and nothing else with it."""

from __future__ import annotations

import pytest

from memlong_agent.errors import (
    MemoryNotFoundError,
)
from memlong_agent.storage import OwnerStats, RecallMark, Storage
from memlong_agent.testing.contract.making import (
    ALICE,
    BOB,
    Clock,
    equal,
    memory,
)


class Forgetting:
    """What is forgotten is gone, all of it, and nothing else with it."""

    def test_delete_takes_everything_or_nothing(self, bank: Storage) -> None:
        one, two = bank.add(ALICE, [memory("one"), memory("two")])
        with pytest.raises(MemoryNotFoundError):
            bank.delete(ALICE, [one.id, "0" * 32])
        assert len(bank.list_memories(ALICE)) == 2
        bank.delete(ALICE, [one.id, one.id])
        assert [each.id for each in bank.list_memories(ALICE)] == [two.id]
        assert bank.stats(ALICE)[ALICE].chunks == bank.stats(ALICE)[ALICE].memories == 1
        with pytest.raises(MemoryNotFoundError):
            bank.get(ALICE, one.id)

    def test_no_call_finds_what_was_forgotten(self, bank: Storage) -> None:
        gone, kept = bank.add(ALICE, [memory("velora stone", "more"), memory("kept")])
        bank.delete(ALICE, [gone.id])
        for _ in range(2):
            assert (
                bank.chunks(ALICE, gone.chunk_pks) == bank.recallable(ALICE, gone.chunk_pks) == []
            )
            assert bank.recallable_pks(ALICE).tolist() == list(kept.chunk_pks)
            assert bank.search(ALICE, "velora stone more") == []
            assert bank.vectors_of(ALICE, gone.chunk_pks)[0].tolist() == []
            assert [pks.tolist() for pks, _ in bank.vectors(ALICE)] == [list(kept.chunk_pks)]
            assert [age.pk for age in bank.chunk_ages(ALICE)] == list(kept.chunk_pks)
            with pytest.raises(MemoryNotFoundError):
                bank.read_kv(gone.chunk_pks)
            bank.record_recalls(ALICE, "t", [RecallMark(gone.chunk_pks[0], 0, 0.5)])
            with pytest.raises(MemoryNotFoundError):
                bank.replace(ALICE, gone.id, memory("back"))
            bank.purge()
        assert bank.list_memories(ALICE) == [kept]
        assert equal(bank.read_kv(kept.chunk_pks)[0], "kept")

    def test_clear_one_session_then_all(self, bank: Storage) -> None:
        bank.add(ALICE, [memory("a", session="s"), memory("b", session="t"), memory("c")])
        bank.add(BOB, [memory("bob", session="s")])
        bank.clear(ALICE, "s")
        bank.clear(ALICE, "s")
        assert {each.text for each in bank.list_memories(ALICE)} == {"b", "c"}
        bank.clear(ALICE)
        assert bank.stats() == {ALICE: OwnerStats(), BOB: bank.stats(BOB)[BOB]}
        assert [each.text for each in bank.list_memories(BOB)] == ["bob"]

    def test_evicting_chunks_takes_empty_memories_along(self, bank: Storage) -> None:
        said = [{"role": "user", "content": "a b"}]
        two, one = bank.add(ALICE, [memory("a", "b", messages=said), memory("c")])
        (bobs,) = bank.add(BOB, [memory("bob")])
        pks = [two.chunk_pks[0], one.chunk_pks[0], bobs.chunk_pks[0]]
        assert bank.delete_chunks(ALICE, pks) == 2
        (left,) = bank.list_memories(ALICE)
        assert (left.id, left.chunk_pks) == (two.id, two.chunk_pks[1:])
        assert (left.text, left.messages) == ("b", None)  # nothing of the evicted text stays
        assert bank.list_memories(BOB) == [bobs]
        assert bank.tokens(ALICE) == 5

    def test_pending_turns_settle_or_vanish(self, bank: Storage, clock: Clock) -> None:
        bank.add(ALICE, [memory("a", pending="good"), memory("b", pending="bad")])
        bank.add(BOB, [memory("bob", pending="good")])
        assert bank.list_memories(ALICE) == []
        assert len(bank.list_memories(ALICE, include_pending=True)) == 2
        assert bank.settle(ALICE, "good") == 1 and bank.discard(ALICE, "bad") == 1
        assert bank.settle(ALICE, "bad") == bank.discard(ALICE, "good") == 0
        assert [each.text for each in bank.list_memories(ALICE, include_pending=True)] == ["a"]
        assert bank.sweep().memories == 0
        clock.pass_s(3600)
        assert bank.sweep().memories == 1  # bob's turn died
        assert bank.list_memories(BOB, include_pending=True) == []
        assert len(bank.list_memories(ALICE)) == 1

    def test_chunk_keys_are_never_used_again(self, bank: Storage) -> None:
        (last,) = bank.add(ALICE, [memory("a", "b")])
        bank.clear(ALICE)
        (new,) = bank.add(ALICE, [memory("c")])
        assert min(new.chunk_pks) > max(last.chunk_pks)
