"""What outlives a closed bank and a failed call, and what a second opening of the bank sees."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest

from memlong_agent.errors import (
    ConfigError,
    IncompatibleMemoryError,
    MemoryNotFoundError,
    StoreLockedError,
)
from memlong_agent.identity import Identity
from memlong_agent.storage import Owner, RecallMark, Storage, Swept
from memlong_agent.testing.contract.making import (
    ALICE,
    BOB,
    MODEL,
    SPEC,
    Clock,
    Opener,
    equal,
    memory,
)

_ENDS = "a bank of this kind ends with its process"


class Lasting:
    """Tests of banks that outlive their process; `lasting = False` leaves them out."""

    lasting = True

    @pytest.fixture
    def again(self, bank: Storage, open_bank: Opener) -> Opener:
        """Opens the bank of the test once more; skips where there is no second opening."""
        if not self.lasting:
            pytest.skip(_ENDS)
        return open_bank

    def test_what_was_written_is_there_when_the_bank_is_opened_again(
        self, open_bank: Opener
    ) -> None:
        if not self.lasting:
            pytest.skip(_ENDS)
        with open_bank() as bank:
            bank.claim(MODEL, SPEC)
            kept, gone = bank.add(ALICE, [memory("kept", "more"), memory("gone")])
            bank.record_recalls(ALICE, "t", [RecallMark(kept.chunk_pks[0], 0, 0.5)])
            bank.delete(ALICE, [gone.id])
            last = bank.last_event(ALICE)
        with open_bank() as later:
            later.claim(MODEL, SPEC)
            assert later.list_memories(ALICE) == [kept]
            assert equal(later.read_kv(kept.chunk_pks)[1], "more")
            assert [age.counter for age in later.chunk_ages(ALICE)] == [1, 0]
            assert later.last_event(ALICE) == last
            (new,) = later.add(ALICE, [memory("new")])
            assert min(new.chunk_pks) > max(gone.chunk_pks) and new.pk > gone.pk
            assert later.last_event(ALICE) > last
            assert later.verify() == []

    def test_another_model_is_refused_by_every_opening(self, bank: Storage, again: Opener) -> None:
        bank.add(ALICE, [memory("a")])
        other = Identity({**MODEL.parts, "tokenizer": "cccc"})
        with again() as later:
            with pytest.raises(IncompatibleMemoryError, match="tokenizer: cccc"):
                later.claim(other, SPEC)
            assert later.encoding_identity() == MODEL and later.kv_spec() == SPEC

    def test_two_openings_see_each_others_commits_at_once(
        self, bank: Storage, again: Opener
    ) -> None:
        with again() as other:
            other.claim(MODEL, SPEC)
            (mine,) = bank.add(ALICE, [memory("velora")])
            assert other.list_memories(ALICE) == [mine]
            assert [hit.pk for hit in other.search(ALICE, "velora")] == list(mine.chunk_pks)
            assert equal(other.read_kv(mine.chunk_pks)[0], "velora")
            assert other.events_after(ALICE, 0) == bank.events_after(ALICE, 0)
            other.delete(ALICE, [mine.id])
            assert bank.list_memories(ALICE) == [] and bank.search(ALICE, "velora") == []
            assert bank.recallable_pks(ALICE).tolist() == []
            with pytest.raises(MemoryNotFoundError):
                bank.read_kv(mine.chunk_pks)
            assert [event.op for event in bank.events_after(ALICE, 0)] == ["add", "delete"]

    def test_a_call_that_fails_in_the_middle_leaves_nothing(
        self, bank: Storage, again: Opener
    ) -> None:
        (hers,) = bank.add(ALICE, [memory("hers")])
        before = bank.last_event(ALICE)
        with pytest.raises(ConfigError, match="collides"):
            bank.add(BOB, [memory("first"), memory("second", id=hers.id)])
        with again(grace_s=0) as other:  # whose sweep would find a file that was left
            assert other.stats(BOB) == {} and other.search(BOB, "first") == []
            assert other.last_event(ALICE) == before
            assert other.sweep() == Swept(files=0, memories=0) and other.verify() == []

    def test_an_interrupt_inside_a_write_leaves_nothing(
        self, bank: Storage, again: Opener, clock: Clock
    ) -> None:
        old = bank.add(ALICE, [memory("old"), memory("other")])[0]
        when = clock.now

        def interrupted() -> None:
            raise KeyboardInterrupt

        calls: Sequence[Callable[[], object]] = [
            lambda: bank.add(ALICE, [memory("new", created_at=when)]),
            lambda: bank.replace(ALICE, old.id, memory("new", created_at=when)),
            lambda: bank.record_recalls(ALICE, "t", [RecallMark(old.chunk_pks[0], 0, 0.5)]),
        ]
        for call in calls:
            clock.hook = interrupted  # the clock is asked once the transaction has begun
            with pytest.raises(KeyboardInterrupt):
                call()
            clock.hook = None
        with again(grace_s=0) as later:
            assert later.list_memories(ALICE) == bank.list_memories(ALICE)
            assert {each.text for each in later.list_memories(ALICE)} == {"old", "other"}
            assert [age.counter for age in later.chunk_ages(ALICE)] == [0, 0]
            assert later.sweep() == Swept(files=0, memories=0) and later.verify() == []

    def test_writers_of_two_openings_lose_nothing(self, bank: Storage, again: Opener) -> None:
        (shared,) = bank.add(ALICE, [memory("shared")])
        with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
            banks = [bank, stack.enter_context(again())]
            banks[1].claim(MODEL, SPEC)

            def work(name: int) -> list[str]:
                made = []
                for turn in range(6):
                    here = banks[(name + turn) % 2]
                    made.append(here.add(ALICE, [memory(f"{name} {turn}")])[0].id)
                    mark = RecallMark(shared.chunk_pks[0], 0, 0.5)
                    here.record_recalls(ALICE, f"{name} {turn}", [mark])
                return made

            written = [each for made in pool.map(work, range(4)) for each in made]
        there = {each.id for each in bank.list_memories(ALICE)}
        assert there == {shared.id, *written} and len(written) == 24
        assert bank.chunk_ages(ALICE)[0].counter == 24

    def test_who_follows_the_events_misses_none(self, bank: Storage, again: Opener) -> None:
        with again() as other, again() as follower:
            other.claim(MODEL, SPEC)
            writers = [
                threading.Thread(target=_write_and_delete, args=(each, name))
                for each, name in ((bank, "a"), (other, "b"), (bank, "c"))
            ]
            for thread in writers:
                thread.start()
            index: set[int] = set()
            last, alive = 0, True
            while alive:
                alive = any(thread.is_alive() for thread in writers)
                for event in follower.events_after(ALICE, last):
                    assert event.seq > last
                    (index.add if event.op == "add" else index.remove)(event.pk)
                    last = event.seq
            for thread in writers:
                thread.join()
            assert index == set(bank.recallable_pks(ALICE).tolist()) and len(index) == 9

    def test_a_writer_that_waits_too_long_says_so_and_readers_do_not_wait(
        self, bank: Storage, again: Opener
    ) -> None:
        (stored,) = bank.add(ALICE, [memory("a")])
        with again(timeout_s=0.1) as other:
            other.claim(MODEL, SPEC)
            with bank._db.scope(write=True):
                with pytest.raises(StoreLockedError, match=r"busy for 0.1 s.*timeout_s"):
                    other.add(ALICE, [memory("b")])
                assert other.list_memories(ALICE) == [stored]
            other.add(ALICE, [memory("c")])
        assert len(bank.list_memories(ALICE)) == 2

    def test_owners_of_two_openings_are_strangers(self, bank: Storage, again: Opener) -> None:
        owners = [Owner("default", "user", name) for name in ("a", "b", "c")]
        with again() as other:
            other.claim(MODEL, SPEC)
            for place, owner in enumerate(owners * 3):
                (bank, other)[place % 2].add(owner, [memory(f"{owner.name} velora {place}")])
            for owner in owners:
                for each in (bank, other):
                    texts = [hit.chunk.text for hit in each.search(owner, "velora")]
                    assert len(texts) == 3 and {text[0] for text in texts} == {owner.name}

    def test_what_a_dead_turn_left_is_swept_by_another_opening(
        self, bank: Storage, again: Opener, clock: Clock
    ) -> None:
        bank.add(ALICE, [memory("kept"), memory("half", pending="turn")])
        with again(clock=clock) as other:
            assert other.sweep().memories == 0
            clock.pass_s(3600)
            assert other.sweep().memories == 1
        assert [each.text for each in bank.list_memories(ALICE, include_pending=True)] == ["kept"]

    def test_a_second_opening_replaces_what_the_first_wrote(
        self, bank: Storage, again: Opener
    ) -> None:
        (old,) = bank.add(ALICE, [memory("tea", message_id="m")])
        with again() as other:
            other.claim(MODEL, SPEC)
            (new,) = other.add(ALICE, [replace(memory("coffee"), message_id="m")])
        assert new.id == old.id and bank.get(ALICE, old.id) == new
        assert bank.chunks(ALICE, old.chunk_pks) == []


def _write_and_delete(bank: Storage, name: str) -> None:
    for turn in range(4):
        (stored,) = bank.add(ALICE, [memory(f"{name} {turn}")])
        if turn == 1:
            bank.delete(ALICE, [stored.id])
