"""Writing, turns, forgetting and capacity, on real banks in memory and in a folder."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory_drafts import (
    ALICE,
    BOB,
    ENCODING,
    SPEC,
    START,
    Clock,
    Compass,
    Scattered,
    draft,
    exchange,
    open_bank,
    texts,
)

from memlong_agent.chunking import document_sections, exchange_chunks
from memlong_agent.config import Settings
from memlong_agent.embedding import HashEmbedder
from memlong_agent.errors import (
    ConfigError,
    IncompatibleMemoryError,
    MemoryNotFoundError,
    StoreError,
)
from memlong_agent.identity import Identity
from memlong_agent.memory import Draft, MemoryBank
from memlong_agent.storage import OwnerStats


@pytest.fixture(params=["memory", "folder"])
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryBank]:
    path = ":memory:" if request.param == "memory" else tmp_path
    with open_bank(path) as opened:
        yield opened


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


def rows(folder: Path, query: str) -> list[tuple[object, ...]]:
    """Of a closed bank."""
    with sqlite3.connect(folder / "bank.sqlite") as conn:
        found = list(conn.execute(query))
    conn.close()
    return found


# Writing and reading


def test_a_memory_is_written_listed_and_got(bank: MemoryBank) -> None:
    made = exchange("My dog is Rex.", "Noted.", metadata={"n": 1}, created_at=START, source="mail")
    written = bank.add(ALICE, [made, draft("second", tokens=5, session=None)])
    first, second = written.memories
    assert (first.text, first.session_id, first.source) == (made.text, "s", "mail")
    assert (first.created_at, first.metadata, first.tokens) == (START, {"n": 1}, 8)
    assert (second.session_id, second.tokens, written.evicted) == (None, 5, 0)
    assert bank.get(ALICE, first.id) == first
    assert bank.list(ALICE) == [second, first]
    assert bank.list(ALICE, "s") == [first]
    assert bank.list(ALICE, limit=1, newest_first=False) == [first]
    assert bank.stats(ALICE)[ALICE].memories == 2
    assert bank.list(BOB) == []
    with pytest.raises(MemoryNotFoundError):
        bank.get(BOB, first.id)


def test_one_draft_that_cannot_be_stored_stops_all(bank: MemoryBank) -> None:
    with pytest.raises(ConfigError, match="no chunks"):
        bank.add(ALICE, [draft("good"), draft()])
    assert bank.list(ALICE) == []
    assert bank.add(ALICE, []).memories == []


def test_what_is_embedded_is_what_was_said_without_time_role_or_source() -> None:
    def tokenize(many: list[str]) -> list[list[int]]:
        return [list(text.encode()) for text in many]

    said = exchange_chunks([("user", "Hi [x] y"), ("assistant", "Yes.")], START, tokenize, 128)
    read = next(document_sections("A b [c] d.", "notes/b.txt", START, tokenize, 128))
    plain = next(document_sections("A b [c] d.", None, START, tokenize, 128))
    kv = draft("x").chunks[0][1]
    embedded = [
        Draft("exchange", "", [(chunk, kv) for chunk in chunks]).embedded_texts
        for chunks in (said, read, plain)
    ]
    assert embedded == [[["Hi [x] y", "Yes."]], [["A b [c] d."]], [["A b [c] d."]]]


def test_the_vector_of_a_chunk_is_the_mean_of_what_was_said_in_it() -> None:
    with open_bank(embedder=Scattered()) as bank:
        said = draft("Rex\nAssistant: Good boy!", header="[2026-11-20 14:05] User: ")
        bank.add(ALICE, [said, draft("one", "two", header="[b.txt] ", role="document")])
        for query in ("one", "two"):
            assert bank.search(ALICE, query, top_k=1)[0].score == pytest.approx(1.0)
        dog, praise = Scattered().embed_texts(["Rex", "Good boy!"])
        want = dog @ (dog + praise) / np.linalg.norm(dog + praise)
        assert bank.search(ALICE, "Rex", top_k=1)[0].score == pytest.approx(float(want), abs=1e-6)


def test_update_keeps_the_id_and_replaces_the_rest(bank: MemoryBank) -> None:
    old = bank.add(ALICE, [draft("the parrot is green", "and old")]).memories[0]
    new = bank.update(ALICE, old.id, draft("the parrot is blue", metadata={"edited": True}))
    assert (new.id, new.text, new.metadata) == (old.id, "the parrot is blue", {"edited": True})
    assert texts(bank.recall(ALICE, "parrot green old", top_k=8)) == ["the parrot is blue"]
    with pytest.raises(MemoryNotFoundError):
        bank.update(BOB, old.id, draft("mine now"))


def test_message_ids_and_documents_are_written_once(bank: MemoryBank) -> None:
    for fields in ({"message_id": "m1"}, {"role": "document", "source": "a.txt", "ordinal": 0}):
        first, again = (bank.add(ALICE, [draft("same", **fields)]).memories[0] for _ in range(2))
        assert first == again
    one, two = (bank.add(ALICE, [draft("said twice")]).memories[0] for _ in range(2))
    assert one.id != two.id


def test_marks_raise_counters_once_a_turn(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft("zebra")])
    for turn, _ in (("t1", 0), ("t1", 1), ("t2", 0)):
        (hit,) = bank.recall(ALICE, "zebra", top_k=8)
        bank.mark(ALICE, turn, [(hit.chunk.pk, hit.rank, hit.score, 0.25)])
    assert bank.recall(ALICE, "zebra", top_k=8)[0].chunk.counter == 2
    bank.search(ALICE, "zebra", top_k=8)
    assert bank.recall(ALICE, "zebra", top_k=8)[0].chunk.counter == 2


def test_tail_gives_the_newest_exchanges_in_order(bank: MemoryBank) -> None:
    assert bank.tail(ALICE, "s", 3) == []
    made = [exchange(f"q{i}", f"a{i}") for i in range(5)]
    for each in made:
        bank.add(ALICE, [each])
    bank.add(ALICE, [draft(f"page {i}", role="document", ordinal=i) for i in range(20)])
    bank.add(ALICE, [exchange("elsewhere", "x", session="t"), draft("running", pending="turn")])
    assert bank.tail(ALICE, "s", 3) == [each.messages for each in made[2:]]
    assert bank.tail(ALICE, "s", 99) == [each.messages for each in made]
    assert bank.tail(ALICE, "s", 0) == bank.tail(BOB, "s", 3) == []
    latest = bank.latest_exchange(ALICE, "s")
    assert latest is not None
    assert latest.messages == made[-1].messages


def test_tail_leaves_out_what_may_not_be_recalled() -> None:
    clock = Clock()
    with open_bank(clock=clock) as bank:
        expiring = exchange("q1", "a1", expires_at=START + timedelta(hours=1))
        bank.add(ALICE, [expiring, exchange("q2", "a2", recallable=False), exchange("q3", "a3")])
        assert len(bank.tail(ALICE, "s", 9)) == 2
        clock.now += timedelta(hours=2)
        assert [each[0]["content"] for each in bank.tail(ALICE, "s", 9)] == ["q3"]


# Turns


def test_a_finished_exchange_replaces_what_its_turn_had_pending(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft("zebra part", pending="t1")], turn="t1")
    bank.add(ALICE, [draft("zebra of another", pending="t2")], turn="t2")
    written = bank.finish_turn(ALICE, "t1", exchange("zebra whole", "ok", pending="t1"))
    assert texts(written.memories) == texts(bank.list(ALICE)) == ["zebra whole\nAssistant: ok"]
    assert texts(bank.recall(ALICE, "zebra", top_k=8, turn="t1")) == texts(written.memories)
    assert len(bank.recall(ALICE, "zebra", top_k=8, turn="t2")) == 2


def test_a_turn_without_an_exchange_leaves_nothing(bank: MemoryBank) -> None:
    for end in (
        lambda: bank.finish_turn(ALICE, "t1", None),
        lambda: bank.discard_turn(ALICE, "t1"),
    ):
        bank.add(ALICE, [draft("zebra part", pending="t1")], turn="t1")
        end()
        assert bank.stats(ALICE)[ALICE] == OwnerStats()
        assert bank.recall(ALICE, "zebra", top_k=8, turn="t1") == []
    assert bank.finish_turn(ALICE, "t1", None).memories == []


def test_the_same_user_text_again_replaces_the_latest_reply(bank: MemoryBank) -> None:
    first = bank.finish_turn(ALICE, "t1", exchange("colour?", "crimson")).memories[0]
    again = bank.finish_turn(ALICE, "t2", exchange("colour?", "turquoise")).memories[0]
    assert again.id == first.id
    assert texts(bank.list(ALICE)) == ["colour?\nAssistant: turquoise"]
    assert texts(bank.recall(ALICE, "colour crimson", top_k=8)) == [again.text]
    bank.finish_turn(ALICE, "t3", exchange("shape?", "round"))
    later = bank.finish_turn(ALICE, "t4", exchange("colour?", "green")).memories[0]
    assert later.id != first.id  # said again later
    assert len(bank.list(ALICE)) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"session": "t"},
        {"session": None},
        {"message_id": "m"},
        {"role": "user"},
        {"messages": None},
    ],
)
def test_another_turn_with_the_same_text_is_kept_apart(
    bank: MemoryBank, fields: dict[str, str | None]
) -> None:
    bank.finish_turn(ALICE, "t1", exchange("hello", "one"))
    bank.finish_turn(BOB, "t1", exchange("hello", "one"))
    bank.finish_turn(ALICE, "t2", replace(exchange("hello", "two"), **fields))
    assert len(bank.list(ALICE)) == 2
    assert len(bank.list(BOB)) == 1


def test_an_exchange_is_written_even_if_pending_files_cannot_be_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_bank(tmp_path) as bank:
        bank.add(ALICE, [draft("part", pending="t1")], turn="t1")
        (file,) = tmp_path.rglob("*.safetensors")
        file.unlink()
        file.mkdir()  # unlink refuses a folder
        written = bank.finish_turn(ALICE, "t1", exchange("whole", "ok"))
        assert texts(bank.list(ALICE)) == texts(written.memories)
    assert "is left for later" in caplog.text


def test_a_pending_exchange_survives_when_the_finished_one_cannot_be_written(
    bank: MemoryBank,
) -> None:
    bank.add(ALICE, [draft("zebra part", pending="t1")], turn="t1")
    with pytest.raises(ConfigError):
        bank.finish_turn(ALICE, "t1", draft())
    assert texts(bank.recall(ALICE, "zebra", top_k=8, turn="t1")) == ["zebra part"]


# Forgetting


def test_deleted_is_gone_from_rows_files_vectors_words_and_recall(tmp_path: Path) -> None:
    with open_bank(tmp_path) as bank:
        bank.add(ALICE, [draft(f"okapi {i}", f"zebra {i}") for i in range(4)])
        gone = bank.add(ALICE, [draft("quagga one", "quagga two")]).memories[0]
        bank.add(ALICE, [draft("okapi last")])
        assert len(bank.recall(ALICE, "quagga", top_k=2)) == 2  # the index is built
        before = files(tmp_path)
        lost = {hit.chunk.pk for hit in bank.recall(ALICE, "quagga", top_k=2)}
        assert bank.delete(ALICE, [gone.id]).memories == 1
        after = files(tmp_path)
        found = texts(bank.recall(ALICE, "quagga one two", top_k=20))
        assert found
        assert not [text for text in found if "quagga" in text]
        with pytest.raises(MemoryNotFoundError):
            bank.get(ALICE, gone.id)
        assert bank.verify() == []
    assert len(before) - len(after) == 2
    assert after.items() <= before.items()  # the others byte for byte
    for table, key in (
        ("chunks", "pk"),
        ("blobs", "chunk_pk"),
        ("vectors", "chunk_pk"),
        ("lexical", "rowid"),
    ):
        kept = {pk for (pk,) in rows(tmp_path, f"SELECT {key} FROM {table}")}
        assert len(kept) == 9
        assert not kept & lost
    assert rows(tmp_path, f"SELECT * FROM memories WHERE id = '{gone.id}'") == []


def test_delete_takes_all_ids_or_none(bank: MemoryBank) -> None:
    mine, too = bank.add(ALICE, [draft("one"), draft("two")]).memories
    theirs = bank.add(BOB, [draft("three")]).memories[0]
    with pytest.raises(MemoryNotFoundError):
        bank.delete(ALICE, [mine.id, theirs.id])
    assert len(bank.list(ALICE)) == 2
    assert bank.delete(ALICE, [mine.id, too.id]).memories == 2


def test_clear_forgets_a_session_or_all(bank: MemoryBank) -> None:
    bank.add(ALICE, [draft("zebra s"), draft("zebra t", session="t"), draft("zebra", session=None)])
    bank.add(BOB, [draft("zebra bob")])
    assert bank.clear(ALICE, "t").memories == 1
    assert texts(bank.recall(ALICE, "zebra", top_k=8)) == ["zebra s", "zebra"]
    assert bank.clear(ALICE).memories == 2
    assert bank.recall(ALICE, "zebra", top_k=8) == []
    assert texts(bank.recall(BOB, "zebra", top_k=8)) == ["zebra bob"]


# Capacity


@pytest.mark.parametrize("policy", ["counter", "fifo", "lru"])
def test_above_capacity_the_owner_is_brought_to_half(
    tmp_path: Path, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "memlong_agent.memory")
    with open_bank(tmp_path, capacity_tokens=256, eviction=policy) as bank:
        bank.add(BOB, [draft(f"theirs {i}") for i in range(30)])
        assert bank.add(ALICE, [draft(f"note {i}") for i in range(32)]).evicted == 0  # 256 tokens
        kept = bank.recall(ALICE, "note 0", top_k=1)
        bank.mark(ALICE, "t1", [(hit.chunk.pk, hit.rank, hit.score, None) for hit in kept])
        assert bank.add(ALICE, [draft("the last one")]).evicted == 17  # 264 - 17 x 8 = 128
        assert bank.stats(ALICE)[ALICE].tokens == 128
        assert bank.stats(BOB)[BOB].tokens == 240
        assert len(files(tmp_path)) == 16 + 30
        left = texts(bank.list(ALICE))
        assert left[0] == "the last one"
        # Note 0 is the oldest: counter takes it, recalled or not; lru keeps what was recalled.
        assert kept[0].chunk.text == "note 0"
        assert ("note 0" in left) == (policy == "lru")
        assert bank.verify() == []
    assert "Evicted 17 chunks" in caplog.text


def test_chunks_of_the_running_turn_are_safe() -> None:
    old = START - timedelta(days=99)  # the oldest of all, were they not of this turn
    with open_bank(capacity_tokens=256, eviction="lru") as bank:
        bank.add(ALICE, [draft(f"note {i}") for i in range(20)])
        part = draft("part", tokens=100, pending="t1", created_at=old)
        assert bank.add(ALICE, [part], turn="t1").evicted == 17
        assert len(bank.recall(ALICE, "part", top_k=1, turn="t1")) == 1
        whole = draft("whole a", "whole b", tokens=128, created_at=old)
        assert bank.finish_turn(ALICE, "t1", whole).evicted == 3
        assert texts(bank.list(ALICE)) == ["whole awhole b"]
        written = bank.add(ALICE, [draft("more", tokens=150, created_at=old)], turn="t2")
        assert written.evicted == 2
        assert texts(bank.list(ALICE)) == ["more"]


def test_update_keeps_what_it_wrote() -> None:
    with open_bank(capacity_tokens=256, eviction="fifo") as bank:
        first = bank.add(ALICE, [draft("a"), draft("b", tokens=200)]).memories[0]
        bank.update(ALICE, first.id, draft("long a", tokens=200, created_at=START))
        assert texts(bank.list(ALICE)) == ["long a"]


def test_a_write_that_is_done_does_not_fail_for_its_eviction(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_bank(tmp_path, capacity_tokens=256) as bank:
        bank.add(ALICE, [draft(f"note {i}") for i in range(32)])
        for file in tmp_path.rglob("*.safetensors"):
            file.unlink()
            file.mkdir()
        assert texts(bank.add(ALICE, [draft("late")]).memories) == ["late"]
    assert "Eviction is left for later" in caplog.text


# Opening


def test_another_model_or_embedder_is_refused(tmp_path: Path) -> None:
    with open_bank(tmp_path) as bank:
        bank.add(ALICE, [draft("zebra")])
    with pytest.raises(IncompatibleMemoryError, match="hash"):
        open_bank(tmp_path, embedder=Compass())
    with pytest.raises(IncompatibleMemoryError, match="other"):
        MemoryBank.open(
            tmp_path, encoding=Identity({"model": "other"}), spec=SPEC, settings=Settings()
        )
    half = replace(SPEC, dtype=torch.float16)
    with pytest.raises(IncompatibleMemoryError, match="float16"):
        MemoryBank.open(tmp_path, encoding=ENCODING, spec=half, settings=Settings())
    with open_bank(tmp_path, embedder="auto") as bank:  # the one that is recorded
        assert isinstance(bank._embedder, HashEmbedder)
        assert texts(bank.recall(ALICE, "zebra", top_k=1)) == ["zebra"]


def test_a_closed_bank_says_so() -> None:
    with open_bank() as bank:
        pass
    with pytest.raises(StoreError, match="closed"):
        bank.list(ALICE)


def test_an_exchange_knows_its_turn_and_a_recall_its_memory(bank: MemoryBank) -> None:
    (told,) = bank.add(ALICE, [draft("zebra")]).memories
    (hit,) = bank.recall(ALICE, "zebra", top_k=1)
    (answer,) = bank.finish_turn(ALICE, "t1", exchange("what?", "zebra", pending="t1")).memories
    bank.mark(ALICE, "t1", [(hit.chunk.pk, 0, 0.5, None)])
    with bank._storage._db.scope() as conn:
        found = conn.exec_driver_sql("SELECT id, turn FROM memories ORDER BY pk").all()
        assert found == [(told.id, None), (answer.id, "t1")]
        joined = "SELECT id FROM recalls JOIN memories ON memories.pk = memory_pk"
        assert conn.exec_driver_sql(joined).scalar() == told.id


def test_an_exchange_and_what_its_turn_recalled_are_written_together(bank: MemoryBank) -> None:
    (told,) = bank.add(ALICE, [draft("zebra fact")]).memories
    (hit,) = bank.recall(ALICE, "zebra", top_k=1)
    marks = [(hit.chunk.pk, 0, 0.5, 0.25)]
    with pytest.raises(ConfigError):
        wrong: Any = [(hit.chunk.pk, None, 0.5, 0.25)]
        bank.finish_turn(ALICE, "t1", exchange("what?", "zebra"), wrong)
    assert [each.id for each in bank.list(ALICE)] == [told.id]
    (answer,) = bank.finish_turn(ALICE, "t2", exchange("what?", "zebra"), marks).memories
    (again,) = bank.finish_turn(ALICE, "t3", exchange("what?", "a zebra"), marks).memories
    assert again.id == answer.id
    assert bank.delete(ALICE, [told.id]).mentions == (answer.id,)
