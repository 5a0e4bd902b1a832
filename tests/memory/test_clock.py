"""Clocks that are put forward and back: nothing is lost but what ends by itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from memory_drafts import ALICE, BOB, START, Clock, draft, exchange, open_bank, texts

from memlong_agent.memory import MemoryBank
from memlong_agent.storage import NewItem

YEARS = timedelta(days=40 * 365)
JUMPS = pytest.mark.parametrize("jump", [YEARS, -YEARS], ids=["forward", "back"])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bank(tmp_path: Path, clock: Clock) -> Iterator[MemoryBank]:
    with open_bank(tmp_path / "bank", clock=clock) as opened:
        yield opened


def said(bank: MemoryBank) -> list[str]:
    return [turn[0]["content"] for turn in bank.tail(ALICE, "s", 9)]


@JUMPS
def test_a_session_goes_on_in_its_order(bank: MemoryBank, clock: Clock, jump: timedelta) -> None:
    for text in ("one", "two", "three"):
        bank.finish_turn(ALICE, text, exchange(text, "Noted.", turn=text))
        clock.now += jump
        jump = -jump
    assert said(bank) == ["one", "two", "three"]
    assert bank.tail(ALICE, "s", 1)[0][0]["content"] == "three"


def test_words_said_again_later_overwrite_nothing(bank: MemoryBank, clock: Clock) -> None:
    """Only an answer that is asked for anew takes the place of the last one."""
    clock.now += YEARS
    bank.finish_turn(ALICE, "a", exchange("Yes.", "Then I book the train.", turn="a"))
    clock.now -= YEARS
    bank.finish_turn(ALICE, "b", exchange("And a hotel?", "Gladly. For two?", turn="b"))
    bank.finish_turn(ALICE, "c", exchange("Yes.", "Then I book the hotel.", turn="c"))
    assert said(bank) == ["Yes.", "And a hotel?", "Yes."]


@JUMPS
def test_what_a_dead_turn_left_is_swept(bank: MemoryBank, clock: Clock, jump: timedelta) -> None:
    """It is as far from now as it ever gets; text that nobody can see must not stay for years."""
    bank.add(ALICE, [draft("half a turn", pending="dead")], turn="dead")
    clock.now += jump
    assert bank._storage.sweep().memories == 1
    assert bank._storage.list_memories(ALICE, include_pending=True) == []


@JUMPS
def test_a_turn_whose_rows_were_swept_ends_well(
    bank: MemoryBank, tmp_path: Path, clock: Clock, jump: timedelta
) -> None:
    bank.add(ALICE, [draft("long text", pending="t")], turn="t")
    clock.now += jump
    with open_bank(tmp_path / "bank", clock=clock) as other:
        other._storage.sweep()
    done = bank.finish_turn(ALICE, "t", exchange("long text", "Noted.", turn="t"))
    assert [each.text for each in bank.list(ALICE)] == [each.text for each in done.memories]
    assert bank.verify() == []


@JUMPS
def test_only_what_ends_by_itself_goes(tmp_path: Path, jump: timedelta) -> None:
    """It ends by the wrong clock for good, and is all there under one that was put back."""
    clock, folder = Clock(), tmp_path / "bank"
    with open_bank(folder, clock=clock) as bank:
        bank.add(ALICE, [exchange("My dog is called Rex.", "Noted."), draft("no end")])
        bank.add(BOB, [draft("a day", expires_at=START + timedelta(days=1))])
        bank.items.put("t", NewItem(("a",), "lasting", {}), [])
        bank.items.put("t", NewItem(("a",), "ending", {}, ttl_s=60), [])
    clock.now += jump
    with open_bank(folder, clock=clock) as bank:
        found = bank.recall(ALICE, "What is my dog called?", top_k=1)
        assert texts(found) == ["My dog is called Rex.\nAssistant: Noted."]
        bank.mark(ALICE, "turn", [(found[0].chunk.pk, 0, 0.5, None)])
        bank.add(ALICE, [draft("written under that clock")])
    clock.now = START
    with open_bank(folder, clock=clock) as bank:
        bank.mark(ALICE, "turn", [(found[0].chunk.pk, 0, 0.5, None)])
        bank.mark(ALICE, "next", [(found[0].chunk.pk, 0, 0.5, None)])
        (seen,) = bank._storage.chunks(ALICE, [found[0].chunk.pk])
        assert seen.counter == 2 and seen.last_recalled_at is not None
        assert START <= seen.last_recalled_at < START + timedelta(minutes=1)
        assert len(bank.list(ALICE)) == 3
        ended = jump > timedelta()
        assert [each.text for each in bank.list(BOB)] == ([] if ended else ["a day"])
        kept = ["lasting"] if ended else ["ending", "lasting"]
        assert sorted(each.key for each in bank.items.rows.list("t", limit=9)) == kept
        assert bank.verify() == []


@JUMPS
def test_others_see_each_commit_once(tmp_path: Path, jump: timedelta) -> None:
    """Events and keys know no time: another process's index misses nothing."""
    clock, folder = Clock(), tmp_path / "bank"
    with open_bank(folder, clock=clock) as bank, open_bank(folder, clock=Clock()) as other:
        for n in range(4):
            bank.add(ALICE, [draft(f"velora {n}")])
            clock.now += jump * (-1) ** n
            assert len(other.recall(ALICE, "velora", top_k=9)) == n + 1
        events = bank._storage.events_after(ALICE, 0)
    assert [each.pk for each in events] == sorted(each.pk for each in events)
    assert [each.seq for each in events] == sorted({each.seq for each in events})


@pytest.mark.parametrize("policy", ["counter", "fifo", "lru"])
def test_what_was_written_last_is_not_evicted_first(tmp_path: Path, policy: str) -> None:
    clock = Clock()
    options = {"capacity_tokens": 256, "eviction": policy}
    with open_bank(tmp_path / "bank", clock=clock, **options) as bank:
        for n in range(4):
            bank.add(ALICE, [draft(f"text {n}", tokens=64)])
        clock.now -= YEARS
        done = bank.finish_turn(ALICE, "t", exchange("My dog is Rex.", "Noted.", tokens=64))
        assert done.evicted > 0
        assert done.memories[0].text in [each.text for each in bank.list(ALICE)]
