"""The contract of base.py, on every back end. The fixture verifies the bank after each test."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest
import torch
from bank_making import (
    ALICE,
    BOB,
    EMBEDDER,
    MODEL,
    NOON,
    SPEC,
    Clock,
    chunk,
    kv_of,
    memory,
    vector_of,
)
from sqlalchemy import text

from memlong_agent.errors import (
    ConfigError,
    IncompatibleMemoryError,
    MemoryNotFoundError,
    StoreError,
)
from memlong_agent.identity import Identity
from memlong_agent.kv import KVChunk
from memlong_agent.storage import NewChunk, Owner, OwnerStats, RecallMark, Storage


def equal(kv: KVChunk, text: str) -> bool:
    expected = kv_of(text, kv.tokens)
    return torch.equal(kv.keys, expected.keys) and torch.equal(kv.values, expected.values)


def test_what_is_added_comes_back(bank: Storage) -> None:
    late = NOON + timedelta(days=1, microseconds=7)
    new = memory(
        "my dog is called Rex",
        "he is nine",
        session="chat-1",
        messages=[{"role": "user", "content": "my dog is called Rex"}],
        source="phone",
        metadata={"mood": "glad", "n": [1, None]},
        message_id="m1",
        expires_at=late,
    )
    (stored,) = bank.add(ALICE, [new])
    assert bank.get(ALICE, stored.id) == stored
    assert (stored.text, stored.session, stored.source) == (new.text, "chat-1", "phone")
    assert (stored.metadata, stored.messages) == ({"mood": "glad", "n": [1, None]}, new.messages)
    assert (stored.created_at, stored.expires_at, stored.tokens) == (NOON, late, 10)
    first, second = bank.chunks(ALICE, stored.chunk_pks)
    assert (first.ordinal, first.header, first.text) == (0, "[header] ", "my dog is called Rex")
    assert first.token_ids == (70_000, 70_001, 70_002, 70_003, 70_004)
    assert (second.memory_id, second.session, second.created_at) == (stored.id, "chat-1", NOON)
    kvs = bank.read_kv([second.pk, first.pk])
    assert equal(kvs[0], "he is nine") and equal(kvs[1], "my dog is called Rex")
    assert kvs[0].keys.dtype == torch.bfloat16


def test_order_asked_is_order_given(bank: Storage) -> None:
    stored = bank.add(ALICE, [memory(f"fact {i}") for i in range(12)])
    pks = [each.chunk_pks[0] for each in stored]
    shuffled = pks[::-1][::2] + pks[::2]
    assert [each.pk for each in bank.chunks(ALICE, shuffled)] == shuffled
    texts = [each.text for each in bank.chunks(ALICE, shuffled)]
    assert all(equal(kv, text) for kv, text in zip(bank.read_kv(shuffled), texts, strict=True))
    assert bank.read_kv([]) == []


def test_a_batch_is_all_or_nothing(bank: Storage) -> None:
    wrong = replace(memory("b"), chunks=[replace(chunk("b"), vector=vector_of("b", 7))])
    with pytest.raises(ConfigError, match=r"length 6; got 7.*memlong rebuild --vectors"):
        bank.add(ALICE, [memory("a"), wrong])
    assert bank.list_memories(ALICE) == [] and bank.stats() == {}


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (memory("a", created_at=datetime(2026, 1, 1)), "created_at has no time zone"),
        (memory("a", metadata={"x": {1}}), "not JSON serializable"),
        (memory("a", text="\ud800"), "surrogates"),
        (memory(), "no chunks"),
        (memory("a", id="x"), "32 hexadecimal"),
        (memory("a", pending="t", message_id="m"), "pending memory"),
        (replace(memory("a"), chunks=[replace(chunk("a"), token_ids=(1,))]), "1 token ids"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(
    bank: Storage, new: object, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        bank.add(ALICE, [memory("good"), new])  # type: ignore[list-item]
    assert bank.stats() == {}


def test_names_that_utf8_cannot_hold_are_refused(bank: Storage) -> None:
    with pytest.raises(ConfigError, match="lone surrogate"):
        bank.add(Owner("default", "user", "\udcff"), [memory("a")])
    with pytest.raises(ConfigError, match="lone surrogate"):
        bank.add(ALICE, [memory("a", session="\udcff")])
    assert bank.stats() == {}


def test_kv_of_another_shape_or_dtype_is_refused(bank: Storage) -> None:
    for spec in (replace(SPEC, head_dim=16), replace(SPEC, dtype=torch.float16)):
        with pytest.raises(ConfigError, match="This bank stores K/V of"):
            bank.add(ALICE, [replace(memory("a"), chunks=[chunk("a", spec=spec)])])


def test_same_text_later_is_a_new_memory(bank: Storage) -> None:
    first, second = bank.add(ALICE, [memory("hello"), memory("hello")])
    assert first.id != second.id


def test_message_id_is_written_once_and_another_text_replaces(bank: Storage) -> None:
    (first,) = bank.add(ALICE, [memory("tea", session="s", message_id="m")])
    assert bank.add(ALICE, [memory("tea", session="s", message_id="m")]) == [first]
    (changed,) = bank.add(ALICE, [memory("coffee", session="s", message_id="m")])
    assert (changed.id, changed.pk, changed.text) == (first.id, first.pk, "coffee")
    assert changed.chunk_pks != first.chunk_pks and bank.chunks(ALICE, first.chunk_pks) == []
    for elsewhere in (memory("tea", session="t", message_id="m"), memory("tea", message_id="m")):
        (other,) = bank.add(ALICE, [elsewhere])
        assert other.id != first.id
    (bobs,) = bank.add(BOB, [memory("tea", session="s", message_id="m")])
    assert bobs.id != first.id
    (again,) = bank.add(ALICE, [memory("milk", message_id="m")])  # no session is one session
    assert (again.id, len(bank.list_memories(ALICE))) == (other.id, 3)


def test_the_same_key_twice_in_one_batch(bank: Storage) -> None:
    batch = [memory("a", message_id="m"), memory("a", message_id="m"), memory("b", message_id="m")]
    ids = {each.id for each in bank.add(ALICE, batch)}
    assert len(ids) == 1 and [each.text for each in bank.list_memories(ALICE)] == ["b"]


def test_documents_are_idempotent_by_source_place_and_text(bank: Storage) -> None:
    sections = [
        memory("one", role="document", source="a.txt", ordinal=0),
        memory("two", role="document", source="a.txt", ordinal=1),
    ]
    first = bank.add(ALICE, sections)
    assert bank.add(ALICE, sections) == first
    others = [
        memory("one", role="document", source="b.txt", ordinal=0),
        memory("one", role="document", source="a.txt", ordinal=1),
        memory("one", role="document"),
    ]
    assert len({each.id for each in first + bank.add(ALICE, others)}) == 5


def test_an_expired_duplicate_is_written_again(bank: Storage, clock: Clock) -> None:
    fields = {"role": "document", "source": "a.txt", "ordinal": 0}
    (old,) = bank.add(ALICE, [memory("one", expires_at=NOON + timedelta(1), **fields)])
    clock.pass_s(2 * 86_400)
    (new,) = bank.add(ALICE, [memory("one", **fields)])
    assert new.id == old.id and new.expires_at is None
    assert [each.text for each in bank.recallable(ALICE, new.chunk_pks)] == ["one"]


def test_ids_can_be_given_and_collide_only_between_owners(bank: Storage) -> None:
    (stored,) = bank.add(ALICE, [memory("a", id="0123456789abcdef" * 2)])
    assert bank.add(ALICE, [memory("a", id=stored.id)]) == [stored]
    with pytest.raises(ConfigError, match="collides"):
        bank.add(BOB, [memory("a", id=stored.id)])
    assert bank.list_memories(BOB) == []


def test_replace_keeps_the_id(bank: Storage) -> None:
    old, other = bank.add(ALICE, [memory("tea", "milk"), memory("else")])
    new = bank.replace(ALICE, old.id, memory("coffee", metadata={"v": 2}))
    assert (new.id, new.text, new.metadata, new.chunks) == (old.id, "coffee", {"v": 2}, 1)
    assert equal(bank.read_kv(new.chunk_pks)[0], "coffee")
    with pytest.raises(MemoryNotFoundError, match="forgotten"):
        bank.read_kv(old.chunk_pks)
    assert [hit.pk for hit in bank.search(ALICE, "tea milk coffee")] == list(new.chunk_pks)
    with pytest.raises(MemoryNotFoundError, match="List this owner"):
        bank.replace(BOB, other.id, memory("stolen"))
    assert bank.stats(BOB) == {}


def test_delete_takes_everything_or_nothing(bank: Storage) -> None:
    one, two = bank.add(ALICE, [memory("one"), memory("two")])
    with pytest.raises(MemoryNotFoundError):
        bank.delete(ALICE, [one.id, "0" * 32])
    assert len(bank.list_memories(ALICE)) == 2
    assert bank.delete(ALICE, [one.id, one.id]) == 1
    assert [each.id for each in bank.list_memories(ALICE)] == [two.id]
    assert bank.stats(ALICE)[ALICE].chunks == bank.stats(ALICE)[ALICE].memories == 1
    with pytest.raises(MemoryNotFoundError):
        bank.get(ALICE, one.id)


def test_clear_one_session_then_all(bank: Storage) -> None:
    bank.add(ALICE, [memory("a", session="s"), memory("b", session="t"), memory("c")])
    bank.add(BOB, [memory("bob", session="s")])
    assert bank.clear(ALICE, "s") == 1 and bank.clear(ALICE, "s") == 0
    assert {each.text for each in bank.list_memories(ALICE)} == {"b", "c"}
    assert bank.clear(ALICE) == 2
    assert bank.stats() == {ALICE: OwnerStats(), BOB: bank.stats(BOB)[BOB]}
    assert [each.text for each in bank.list_memories(BOB)] == ["bob"]


def test_evicting_chunks_takes_empty_memories_along(bank: Storage) -> None:
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


def test_lists_are_by_time(bank: Storage) -> None:
    times = [NOON + timedelta(hours=h) for h in (2, 0, 1)]
    bank.add(ALICE, [memory(str(t.hour), created_at=t, session="s") for t in times])
    assert [each.text for each in bank.list_memories(ALICE)] == ["14", "13", "12"]
    assert next(each.text for each in bank.list_memories(ALICE, newest_first=False)) == "12"
    assert [each.text for each in bank.list_memories(ALICE, "s", limit=1)] == ["14"]
    assert bank.list_memories(ALICE, "t") == bank.list_memories(BOB) == []
    latest = bank.latest_exchange(ALICE, "s")
    assert latest is not None and latest.text == "14"
    assert bank.latest_exchange(ALICE, "t") is None and bank.latest_exchange(BOB, "s") is None
    ages = bank.chunk_ages(ALICE)
    assert [age.created_at for age in ages] == sorted(times)


def test_latest_exchange_is_a_finished_exchange(bank: Storage) -> None:
    bank.add(ALICE, [memory("first", session="s")])
    later = {"session": "s", "created_at": NOON + timedelta(hours=1)}
    bank.add(ALICE, [memory("x", role="user", **later), memory("y", pending="t", **later)])
    latest = bank.latest_exchange(ALICE, "s")
    assert latest is not None and latest.text == "first"


def test_recall_reads_only_what_may_be_recalled(bank: Storage, clock: Clock) -> None:
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


def test_superseded_memories_are_not_recalled(bank: Storage) -> None:
    old, new = bank.add(ALICE, [memory("old"), memory("new")])
    with bank._db.scope(write=True) as conn:
        sql = text("UPDATE memories SET superseded_by = :new WHERE pk = :old")
        conn.execute(sql, {"new": new.pk, "old": old.pk})
    assert bank.get(ALICE, old.id).superseded_by == new.id
    pks = [*old.chunk_pks, *new.chunk_pks]
    assert [each.text for each in bank.recallable(ALICE, pks)] == ["new"]
    bank.delete(ALICE, [new.id])
    assert [each.text for each in bank.recallable(ALICE, pks)] == ["old"]


def test_pending_turns_settle_or_vanish(bank: Storage, clock: Clock) -> None:
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


def test_counters_rise_once_a_turn(bank: Storage, clock: Clock) -> None:
    (stored,) = bank.add(ALICE, [memory("a", "b")])
    (bobs,) = bank.add(BOB, [memory("bob")])
    a, b = stored.chunk_pks
    clock.pass_s(5)
    bank.record_recalls(ALICE, "t1", [RecallMark(a, 0, 0.9, 0.2), RecallMark(a, 1, 0.8)])
    bank.record_recalls(ALICE, "t1", [RecallMark(a, 2, 0.7), RecallMark(bobs.chunk_pks[0], 0, 1)])
    bank.record_recalls(ALICE, "t2", [RecallMark(a, 0, 0.9), RecallMark(10**6, 1, 0.1)])
    first, second = bank.chunk_ages(ALICE)
    assert (first.pk, first.counter, first.last_recalled_at) == (a, 2, clock.now)
    assert (second.pk, second.counter, second.last_recalled_at) == (b, 0, None)
    assert bank.chunk_ages(BOB)[0].counter == 0
    with bank._db.scope() as conn:
        sql = "SELECT turn, chunk_pk, rank, score, attention_mass FROM recalls ORDER BY pk"
        rows = [tuple(row) for row in conn.exec_driver_sql(sql)]
    assert rows == [("t1", a, 2, 0.7, None), ("t2", a, 0, 0.9, None)]
    bank.delete(ALICE, [stored.id])
    with bank._db.scope() as conn:
        assert [row[1] for row in conn.exec_driver_sql(sql)] == [None, None]


def test_events_let_an_index_follow(bank: Storage) -> None:
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


def test_chunk_keys_are_never_used_again(bank: Storage) -> None:
    (last,) = bank.add(ALICE, [memory("a", "b")])
    bank.clear(ALICE)
    (new,) = bank.add(ALICE, [memory("c")])
    assert min(new.chunk_pks) > max(last.chunk_pks)


def test_vectors_stream_in_batches_and_by_key(bank: Storage) -> None:
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


def test_a_bank_without_vectors(bank: Storage) -> None:
    without = replace(memory("a"), chunks=[replace(chunk("a"), vector=None)])
    bank.add(ALICE, [without])
    assert list(bank.vectors(ALICE)) == []
    assert len(bank.search(ALICE, "hello")) == 0
    assert bank.verify() == []


def test_owners_are_strangers(bank: Storage) -> None:
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


def test_stats_count_rows_and_bytes(bank: Storage) -> None:
    bank.add(ALICE, [memory("a", "b"), memory("c")])
    payload = 3 * (5 * SPEC.bytes_per_token + bank._blobs.cipher.overhead)
    assert bank.stats(ALICE) == {ALICE: OwnerStats(2, 3, 15, 3 * 4096 + payload)}
    assert (bank.tokens(ALICE), bank.tokens(BOB)) == (15, 0)


def test_a_bank_belongs_to_one_model_and_one_embedder(bank: Storage) -> None:
    bank.claim(MODEL, SPEC)
    bank.claim_retrieval(EMBEDDER)
    assert (bank.encoding_identity(), bank.retrieval_identity()) == (MODEL, EMBEDDER)
    assert bank.kv_spec() == SPEC
    other = Identity({**MODEL.parts, "tokenizer": "cccc"})
    with pytest.raises(IncompatibleMemoryError, match=r"tokenizer: cccc .*bbbb.*memlong rebuild"):
        bank.claim(other, SPEC)
    with pytest.raises(IncompatibleMemoryError, match=r"K/V: .*float32.*bfloat16"):
        bank.claim(MODEL, replace(SPEC, dtype=torch.float32))
    with pytest.raises(IncompatibleMemoryError, match=r"dim: 7 here, 6.*rebuild --vectors"):
        bank.claim_retrieval(Identity({**EMBEDDER.parts, "dim": "7"}))
    assert (bank.encoding_identity(), bank.retrieval_identity()) == (MODEL, EMBEDDER)


def test_an_unclaimed_bank_takes_nothing() -> None:
    with Storage.open(":memory:") as bank:
        assert bank.encoding_identity() is bank.retrieval_identity() is bank.kv_spec() is None
        with pytest.raises(ConfigError, match=r"claim\(\) first"):
            bank.add(ALICE, [memory("a")])


def test_a_closed_bank_says_so(bank: Storage) -> None:
    with Storage.open(":memory:") as other:
        other.close()
        with pytest.raises(StoreError, match=r"closed. Open it again"):
            other.stats()


def test_threads_write_and_read_at_once(bank: Storage) -> None:
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


def test_long_lists_pass_through_in_batches(bank: Storage) -> None:
    words = [NewChunk("", f"w{i}", (i,), kv_of("w", 1), vector_of("w")) for i in range(600)]
    (stored,) = bank.add(ALICE, [replace(memory("w"), chunks=words)])
    assert [each.ordinal for each in bank.chunks(ALICE, stored.chunk_pks)] == list(range(600))
    assert len(bank.vectors_of(ALICE, stored.chunk_pks)[0]) == 600
    assert bank.delete_chunks(ALICE, stored.chunk_pks) == 600
    assert bank.list_memories(ALICE) == []
