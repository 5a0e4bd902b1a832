"""What is written comes back, or nothing is written at all."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import torch

from memlong_agent.errors import (
    ConfigError,
    IncompatibleMemoryError,
    MemoryNotFoundError,
)
from memlong_agent.identity import Identity
from memlong_agent.storage import NewChunk, Owner, Storage
from memlong_agent.testing.contract.making import (
    ALICE,
    BOB,
    EMBEDDER,
    MODEL,
    NOON,
    SPEC,
    Clock,
    Opener,
    chunk,
    equal,
    kv_of,
    memory,
    vector_of,
)


class Writing:
    """What is written comes back, or nothing is written at all."""

    def test_what_is_added_comes_back(self, bank: Storage) -> None:
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
        assert (stored.metadata, stored.messages) == (
            {"mood": "glad", "n": [1, None]},
            new.messages,
        )
        assert (stored.created_at, stored.expires_at, stored.tokens) == (NOON, late, 10)
        first, second = bank.chunks(ALICE, stored.chunk_pks)
        assert (first.ordinal, first.header, first.text) == (0, "[header] ", "my dog is called Rex")
        assert first.token_ids == (70_000, 70_001, 70_002, 70_003, 70_004)
        assert (second.memory_id, second.session, second.created_at) == (stored.id, "chat-1", NOON)
        kvs = bank.read_kv([second.pk, first.pk])
        assert equal(kvs[0], "he is nine") and equal(kvs[1], "my dog is called Rex")
        assert kvs[0].keys.dtype == torch.bfloat16

    def test_order_asked_is_order_given(self, bank: Storage) -> None:
        stored = bank.add(ALICE, [memory(f"fact {i}") for i in range(12)])
        pks = [each.chunk_pks[0] for each in stored]
        shuffled = pks[::-1][::2] + pks[::2]
        assert [each.pk for each in bank.chunks(ALICE, shuffled)] == shuffled
        texts = [each.text for each in bank.chunks(ALICE, shuffled)]
        assert all(equal(kv, text) for kv, text in zip(bank.read_kv(shuffled), texts, strict=True))
        assert bank.read_kv([]) == []

    def test_a_batch_is_all_or_nothing(self, bank: Storage) -> None:
        wrong = replace(memory("b"), chunks=[replace(chunk("b"), vector=vector_of("b", 7))])
        with pytest.raises(ConfigError, match=r"length 6; got 7.*memlong rebuild"):
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
        self, bank: Storage, new: object, said: str
    ) -> None:
        with pytest.raises(ConfigError, match=said):
            bank.add(ALICE, [memory("good"), new])  # type: ignore[list-item]
        assert bank.stats() == {}

    def test_names_that_utf8_cannot_hold_are_refused(self, bank: Storage) -> None:
        with pytest.raises(ConfigError, match="lone surrogate"):
            bank.add(Owner("default", "user", "\udcff"), [memory("a")])
        with pytest.raises(ConfigError, match="lone surrogate"):
            bank.add(ALICE, [memory("a", session="\udcff")])
        assert bank.stats() == {}

    def test_a_nul_is_refused_wherever_text_stands(self, bank: Storage) -> None:
        nul = "a\0b"
        refused = [
            (ALICE, memory(nul)),
            (ALICE, memory("a", text=nul)),
            (ALICE, memory("a", session=nul)),
            (ALICE, memory("a", source=nul, role="document")),
            (ALICE, memory("a", message_id=nul)),
            (Owner("default", "user", nul), memory("a")),
        ]
        for owner, new in refused:
            with pytest.raises(ConfigError, match=r"NUL"):
                bank.add(owner, [memory("good"), new])
        assert bank.stats() == {}
        (stored,) = bank.add(ALICE, [memory("a", metadata={"k": nul})])  # JSON writes it as text
        assert bank.get(ALICE, stored.id).metadata == {"k": nul}

    def test_kv_of_another_shape_or_dtype_is_refused(self, bank: Storage) -> None:
        for spec in (replace(SPEC, head_dim=16), replace(SPEC, dtype=torch.float16)):
            with pytest.raises(ConfigError, match="This bank stores K/V of"):
                bank.add(ALICE, [replace(memory("a"), chunks=[chunk("a", spec=spec)])])

    def test_same_text_later_is_a_new_memory(self, bank: Storage) -> None:
        first, second = bank.add(ALICE, [memory("hello"), memory("hello")])
        assert first.id != second.id

    def test_message_id_is_written_once_and_another_text_replaces(self, bank: Storage) -> None:
        (first,) = bank.add(ALICE, [memory("tea", session="s", message_id="m")])
        assert bank.add(ALICE, [memory("tea", session="s", message_id="m")]) == [first]
        (changed,) = bank.add(ALICE, [memory("coffee", session="s", message_id="m")])
        assert (changed.id, changed.pk, changed.text) == (first.id, first.pk, "coffee")
        assert changed.chunk_pks != first.chunk_pks and bank.chunks(ALICE, first.chunk_pks) == []
        for elsewhere in (
            memory("tea", session="t", message_id="m"),
            memory("tea", message_id="m"),
        ):
            (other,) = bank.add(ALICE, [elsewhere])
            assert other.id != first.id
        (bobs,) = bank.add(BOB, [memory("tea", session="s", message_id="m")])
        assert bobs.id != first.id
        (again,) = bank.add(ALICE, [memory("milk", message_id="m")])  # no session is one session
        assert (again.id, len(bank.list_memories(ALICE))) == (other.id, 3)

    def test_the_same_key_twice_in_one_batch(self, bank: Storage) -> None:
        batch = [
            memory("a", message_id="m"),
            memory("a", message_id="m"),
            memory("b", message_id="m"),
        ]
        ids = {each.id for each in bank.add(ALICE, batch)}
        assert len(ids) == 1 and [each.text for each in bank.list_memories(ALICE)] == ["b"]

    def test_documents_are_idempotent_by_source_place_and_text(self, bank: Storage) -> None:
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

    def test_an_expired_duplicate_is_written_again(self, bank: Storage, clock: Clock) -> None:
        fields = {"role": "document", "source": "a.txt", "ordinal": 0}
        (old,) = bank.add(ALICE, [memory("one", expires_at=NOON + timedelta(1), **fields)])
        clock.pass_s(2 * 86_400)
        (new,) = bank.add(ALICE, [memory("one", **fields)])
        assert new.id == old.id and new.expires_at is None
        assert [each.text for each in bank.recallable(ALICE, new.chunk_pks)] == ["one"]

    def test_ids_can_be_given_and_collide_only_between_owners(self, bank: Storage) -> None:
        (stored,) = bank.add(ALICE, [memory("a", id="0123456789abcdef" * 2)])
        assert bank.add(ALICE, [memory("a", id=stored.id)]) == [stored]
        with pytest.raises(ConfigError, match="collides"):
            bank.add(BOB, [memory("a", id=stored.id)])
        assert bank.list_memories(BOB) == []

    def test_replace_keeps_the_id(self, bank: Storage) -> None:
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

    def test_a_bank_belongs_to_one_model_and_one_embedder(self, bank: Storage) -> None:
        bank.claim(MODEL, SPEC)
        bank.claim_retrieval(EMBEDDER)
        assert (bank.encoding_identity(), bank.retrieval_identity()) == (MODEL, EMBEDDER)
        assert bank.kv_spec() == SPEC
        other = Identity({**MODEL.parts, "tokenizer": "cccc"})
        with pytest.raises(
            IncompatibleMemoryError, match=r"tokenizer: cccc .*bbbb.*memlong rebuild"
        ):
            bank.claim(other, SPEC)
        with pytest.raises(IncompatibleMemoryError, match=r"K/V: .*float32.*bfloat16"):
            bank.claim(MODEL, replace(SPEC, dtype=torch.float32))
        with pytest.raises(IncompatibleMemoryError, match=r"dim: 7 here, 6.*memlong rebuild"):
            bank.claim_retrieval(Identity({**EMBEDDER.parts, "dim": "7"}))
        assert (bank.encoding_identity(), bank.retrieval_identity()) == (MODEL, EMBEDDER)

    def test_an_unclaimed_bank_takes_nothing(self, open_bank: Opener) -> None:
        with open_bank() as bank:
            assert bank.encoding_identity() is None and bank.retrieval_identity() is None
            assert bank.kv_spec() is None
            with pytest.raises(ConfigError, match=r"claim\(\) first"):
                bank.add(ALICE, [memory("a")])

    def test_long_lists_pass_through_in_batches(self, bank: Storage) -> None:
        words = [NewChunk("", f"w{i}", (i,), kv_of("w", 1), vector_of("w")) for i in range(600)]
        (stored,) = bank.add(ALICE, [replace(memory("w"), chunks=words)])
        assert [each.ordinal for each in bank.chunks(ALICE, stored.chunk_pks)] == list(range(600))
        assert len(bank.vectors_of(ALICE, stored.chunk_pks)[0]) == 600
        assert bank.delete_chunks(ALICE, stored.chunk_pks) == 600
        assert bank.list_memories(ALICE) == []
