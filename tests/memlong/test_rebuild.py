"""`rebuild`: the same memories under another model, embedder, tokenizer or chunk size."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank_kinds import KINDS, Kind, on

from memlong_agent import ConfigError, IncompatibleMemoryError, MemLong, StoreError
from memlong_agent.chunking import ChunkText
from memlong_agent.embedding import HashEmbedder
from memlong_agent.identity import Identity
from memlong_agent.layout import MemoryLayout
from memlong_agent.storage import Owner, StoredChunk
from memlong_agent.testing import preferring, tiny_checkpoint
from memlong_agent.training.tokenizer import train_tokenizer

Open = Callable[..., MemLong]
ALICE = Owner("default", "user", "alice")
BOB = Owner("default", "user", "bob")
PARAGRAPH = "The harbor of Tarn is called Velmor. Ships lie there in winter.\n\n"
DOCUMENT = "".join(f"Paragraph {n} is about thing {n}. {PARAGRAPH}" for n in range(60))
QUERIES = ("harbor of Tarn", "dog called", "spare key", "thing 17", "red boat")


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights in another shape, the same tokenizer."""
    folder = tmp_path_factory.mktemp("other")
    return tiny_checkpoint(folder, layout=MemoryLayout.memlong(6), layers=6, seed=1, head_dim=8)


@pytest.fixture(scope="module")
def other_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same layers under a tokenizer of longer tokens."""
    folder = tiny_checkpoint(
        tmp_path_factory.mktemp("words"), layout=MemoryLayout.memlong(4), seed=2, vocab_size=600
    )
    train_tokenizer([DOCUMENT] * 3, vocabulary=500).save_pretrained(folder)
    return folder


@pytest.fixture
def furnished(open_memlong: Open, kind: Kind) -> Kind:
    """A closed bank with exchanges, documents, items, recalls, and memories of every state."""
    with open_memlong(chunk_tokens=96) as ml:
        alice = ml.memories(user_id="alice", session_id="monday")
        with preferring(ml, "Noted: Rex."):
            ml.session("monday", user_id="alice").chat("My dog is called Rex. " * 9, max_tokens=40)
        with preferring(ml, "I don't know."):
            ml.session("friday", user_id="alice").chat("What is my dog called?", max_tokens=40)
        alice.add_turn("The spare key is under the teapot.", "Noted: " + "the teapot. " * 20)
        alice.add(DOCUMENT, source="books/tarn.txt", metadata={"shelf": 3})
        alice.add(iter([DOCUMENT[:900]]))
        alice.add("Gone soon.", expires_at=datetime(2099, 11, 20, tzinfo=UTC))
        alice.add([{"role": "user", "content": "Ö 🐍?"}, {"role": "assistant", "content": "Ja."}])
        (secret,) = alice.add("The attic door squeaks.", message_id="m-1")
        ml.engine.bank._storage.set_recallable(ALICE, secret.id, False)
        told = {"texts": ["tea"], "remember": "I drink tea.", "user_id": "alice"}
        ml.items().put(("a",), "k", {"drink": "tea", "n": 1}, **told)
        ml.items().put(("a",), "plain", {"n": 2})
    with open_memlong(chunk_tokens=96, capacity_tokens=400) as ml:
        bob = ml.memories(user_id="bob")
        for colour in ("red", "blue", "green"):
            bob.add(f"The {colour} boat is new. " + "It was dear. " * 18)
    return kind


def test_an_archive_is_cut_anew_as_a_rebuilt_bank_is(
    furnished: Kind, open_memlong: Open, other_words: Path, tmp_path: Path
) -> None:
    """Evicted parts, withheld replies, times in headers: one way to cut, whoever asks."""
    with open_memlong(chunk_tokens=96) as ml:
        ml.export(tmp_path / "archive")
    another: dict[str, Any] = {"model": other_words, "chunk_tokens": 48}
    MemLong.rebuild(other_words, **furnished.options, embedder="hash", chunk_tokens=48)
    with open_memlong(**another, bank=tmp_path / "new") as new, open_memlong(**another) as old:
        new.restore(tmp_path / "archive", encode=True)
        for owner in (ALICE, BOB):
            cuts = [
                [chunk_key(each) for each in bank.chunks(owner, sorted(memory.chunk_pks))]
                for bank in (old.engine.bank._storage, new.engine.bank._storage)
                for memory in sorted(bank.list_memories(owner), key=lambda each: each.id)
            ]
            assert cuts[: len(cuts) // 2] == cuts[len(cuts) // 2 :] != []


def chunk_key(chunk: StoredChunk) -> tuple[Any, ...]:
    return (chunk.memory_id, chunk.ordinal, chunk.header, chunk.text, chunk.token_ids)


def contents(ml: MemLong) -> dict[str, Any]:
    """All that a rebuild with the same model must keep, K/V and vectors by their bytes."""
    storage, found = ml.engine.bank._storage, dict[str, Any]()
    for owner in (ALICE, BOB):
        memories = storage.list_memories(owner, newest_first=False)
        pks = [pk for memory in memories for pk in memory.chunk_pks]
        chunks = storage.chunks(owner, pks)
        ids, vectors = storage.vectors_of(owner, pks)
        place = {chunk.pk: (chunk.memory_id, chunk.ordinal) for chunk in chunks}
        found[owner.name] = {
            "memories": [dict(ml.engine.bank.get(owner, m.id)) for m in memories],
            "chunks": [(*chunk_key(c), c.counter, c.last_recalled_at) for c in chunks],
            "kv": {
                place[pk]: (kv.keys.numpy().tobytes(), kv.values.numpy().tobytes())
                for pk, kv in zip(pks, storage.read_kv(pks), strict=True)
            },
            "vectors": {place[int(pk)]: v.tobytes() for pk, v in zip(ids, vectors, strict=True)},
            "found": [
                [(r.memory_id, r.chunk, r.score) for r in ml.engine.bank.search(owner, q, top_k=5)]
                for q in QUERIES
            ],
        }  # fmt: skip
    return found


def recall_log(bank: Kind) -> list[tuple[Any, ...]]:
    return bank.run("""SELECT r.turn, m.id, c.ordinal, r.rank, r.score, r.at FROM recalls r
        LEFT JOIN chunks c ON c.pk = r.chunk_pk LEFT JOIN memories m ON m.pk = c.memory_pk
        ORDER BY r.pk""")


def files(bank: Kind) -> dict[str, bytes]:
    kept = (bank.folder / "kv").rglob("*")
    return {path.name: path.read_bytes() for path in kept if path.is_file()}


@on(*KINDS)
def test_the_same_model_gives_the_same_bank(
    open_memlong: Open, furnished: Kind, model_folder: Path
) -> None:
    with open_memlong() as ml:
        before = contents(ml)
    log, names = recall_log(furnished), set(files(furnished))
    assert log and any(ordinal is not None for _, _, ordinal, *_ in log)
    seen: list[tuple[int, int]] = []
    done = MemLong.rebuild(
        model_folder,
        **furnished.options,
        embedder="hash",
        on_progress=lambda *now: seen.append(now),
    )
    assert not done.resumed and done.changes == ()
    assert done.chunks == sum(len(each["chunks"]) for each in before.values())
    assert seen[0] == (0, done.memories) and seen[-1] == (done.memories, done.memories)
    assert recall_log(furnished) == log
    assert not names & set(files(furnished))
    with open_memlong() as ml:
        after = contents(ml)
        assert after["alice"] == before["alice"]
        # What is left of a partly evicted memory was encoded in other company at first.
        for key in ("memories", "chunks", "vectors", "found"):
            assert after["bob"][key] == before["bob"][key]
        assert ml.doctor().problems == ()


def texts(ml: MemLong) -> dict[str, str]:
    return {m.id: m.text for m in ml.memories(user_id="alice").list()}


def assert_encoded_by(ml: MemLong) -> None:
    """All K/V in the bank are those that its model gives to the chunks as they are now."""
    storage = ml.engine.bank._storage
    for memory in storage.list_memories(ALICE):
        cut = [
            ChunkText(c.header, c.text, tuple(ml.engine.tokenize([c.header + c.text])[0]))
            for c in storage.chunks(ALICE, memory.chunk_pks)
        ]
        for (_, kv), kept in zip(
            ml.engine.encode(cut), storage.read_kv(memory.chunk_pks), strict=True
        ):
            assert torch.equal(kv.keys, kept.keys) and torch.equal(kv.values, kept.values)


@pytest.mark.parametrize(
    ("which", "kind"),
    [("other_model", "sqlite"), ("other_words", "sqlite"), ("other_words", "postgres")],
    indirect=["kind"],
)
def test_another_model_gets_a_bank_as_if_it_had_written_it(
    which: str, request: pytest.FixtureRequest, open_memlong: Open, furnished: Kind
) -> None:
    model: Path = request.getfixturevalue(which)
    with open_memlong() as ml:
        before, recorded = texts(ml), contents(ml)
    with pytest.raises(IncompatibleMemoryError, match=r"weights up to.*memlong rebuild --bank"):
        open_memlong(model=model)
    done = MemLong.rebuild(model, **furnished.options, embedder="hash")
    assert any(change.startswith("weights up to the memory layer") for change in done.changes)
    with open_memlong(model=model) as ml:
        assert texts(ml) == before
        after = contents(ml)
        records = [[{**m, "tokens": 0} for m in c["alice"]["memories"]] for c in (recorded, after)]
        assert records[0] == records[1]
        counted = [sum(c[-2] for c in x["alice"]["chunks"]) for x in (recorded, after)]
        assert counted[0] == counted[1] > 0
        assert ml.doctor().problems == ()
        assert_encoded_by(ml)
        bodies, old = (
            [c[3] for c in each["alice"]["chunks"] if c[2] == "[tarn.txt] "]
            for each in (after, recorded)
        )
        assert "".join(bodies) == DOCUMENT
        assert max(len(c[4]) for c in after["alice"]["chunks"]) <= 128
        assert len(bodies) < len(old) if which == "other_words" else bodies == old
    with pytest.raises(IncompatibleMemoryError, match="rebuild"):
        open_memlong()


def test_chunks_of_another_size(open_memlong: Open, furnished: Kind, model_folder: Path) -> None:
    with open_memlong() as ml:
        before = texts(ml)
    MemLong.rebuild(model_folder, **furnished.options, embedder="hash", chunk_tokens=64)
    with open_memlong() as ml:
        assert texts(ml) == before
        chunks = contents(ml)["alice"]["chunks"]
        assert max(len(chunk[4]) for chunk in chunks) <= 64
        document = [c for c in chunks if c[2] == "[tarn.txt] "]
        assert sorted({c[0] for c in document}) == sorted(
            m.id for m in ml.memories(user_id="alice").list() if m.source == "books/tarn.txt"
        )
        assert ml.doctor().problems == ()
    with pytest.raises(ConfigError, match="chunk_tokens"):
        MemLong.rebuild(model_folder, **furnished.options, chunk_tokens=8)
    with open_memlong() as ml:
        assert texts(ml) == before


@on("sqlite", "postgres")
def test_another_embedder_leaves_kv_untouched(open_memlong: Open, furnished: Kind) -> None:
    before, log = files(furnished), recall_log(furnished)
    with open_memlong() as ml:
        recorded = contents(ml)
    with pytest.raises(IncompatibleMemoryError, match="memlong rebuild --vectors"):
        open_memlong(embedder=Reversed())
    done = MemLong.rebuild(**furnished.options, vectors=True, embedder=Reversed())
    assert done.items == 1 and done.chunks == sum(len(c["chunks"]) for c in recorded.values())
    assert files(furnished) == before and recall_log(furnished) == log
    with open_memlong(embedder=Reversed()) as ml:
        after = contents(ml)
        assert after["alice"]["vectors"].keys() == recorded["alice"]["vectors"].keys()
        assert all(
            after["alice"]["vectors"][k] != v for k, v in recorded["alice"]["vectors"].items()
        )
        assert (after["alice"]["kv"], after["alice"]["chunks"]) == (
            recorded["alice"]["kv"],
            recorded["alice"]["chunks"],
        )
        found = ml.items().search(("a",), query="tea")
        assert [(item.key, score is not None) for item, score in found] == [
            ("k", True),
            ("plain", False),
        ]
        assert ml.doctor().problems == ()
    with pytest.raises(IncompatibleMemoryError, match="come from another embedder"):
        open_memlong()
    MemLong.rebuild(**furnished.options, vectors=True, embedder="lexical")
    with open_memlong(embedder="lexical") as ml:
        assert contents(ml)["alice"]["vectors"] == {} and ml.doctor().problems == ()


class Reversed:
    """A hash embedder of the reversed text, one place longer."""

    def __init__(self) -> None:
        self._hash = HashEmbedder()
        self.identity = Identity({"embedder": "reversed"})
        self.dimensions, self.max_tokens = 257, 1 << 20
        self.threshold = self.share_of_best = 0.0

    def embed_query(self, text: str) -> Any:
        vector = np.append(self._hash.embed_query(text[::-1]), np.float32(1))
        return vector / np.linalg.norm(vector)

    def embed_texts(self, texts: Any) -> Any:
        return np.array([self.embed_query(t) for t in texts], np.float32).reshape(len(texts), 257)


def test_damaged_kv_is_repaired(open_memlong: Open, furnished: Kind, model_folder: Path) -> None:
    some = sorted((furnished.folder / "kv").rglob("*.safetensors"))
    some[0].unlink()
    some[1].write_bytes(b"not a tensor")
    with open_memlong() as ml:
        assert len(ml.doctor().problems) == 2
    MemLong.rebuild(model_folder, **furnished.options, embedder="hash")
    with open_memlong() as ml:
        assert ml.doctor().problems == ()


@on("sqlite", "postgres")
def test_who_has_the_old_model_open_is_refused_from_then_on(
    open_memlong: Open, furnished: Kind, other_model: Path
) -> None:
    ml = open_memlong()
    memories = ml.memories(user_id="alice")
    (recall,) = memories.search("dog called", top_k=1)
    chunk = ml.engine.bank._storage.get(ALICE, recall.memory_id).chunk_pks
    kv_files = set(files(furnished))
    states: list[str] = []

    def look(done: int, total: int) -> None:
        if not states:
            for call in (
                lambda: memories.add("During."),
                lambda: memories.search("dog"),
                lambda: ml.engine.bank._storage.read_kv(chunk),
                lambda: open_memlong(),
                lambda: open_memlong(model=other_model),
            ):
                with pytest.raises(IncompatibleMemoryError, match="is being rebuilt") as refused:
                    call()
                states.append(str(refused.value))

    MemLong.rebuild(other_model, **furnished.options, embedder="hash", on_progress=look)
    assert len(states) == 5
    for call in (
        lambda: memories.add("After."),
        lambda: memories.search("dog"),
        lambda: ml.engine.bank._storage.read_kv(chunk),
        lambda: ml.session("monday", user_id="alice").chat("What is my dog called?", max_tokens=4),
        lambda: ml.items().put(("a",), "late", {"n": 3}),
        lambda: memories.delete(recall.memory_id),
    ):
        with pytest.raises(IncompatibleMemoryError, match=r"rebuilt for another model: .*weights"):
            call()
    ml.close()
    assert not kv_files & set(files(furnished))
    with open_memlong(model=other_model) as ml:
        assert ml.doctor().problems == ()
        assert not [
            m for m in ml.memories(user_id="alice").list() if m.text in ("During.", "After.")
        ]


def test_who_has_the_old_embedder_open_is_refused(open_memlong: Open, furnished: Kind) -> None:
    ml = open_memlong()
    memories = ml.memories(user_id="alice")
    assert memories.search("dog called")
    MemLong.rebuild(**furnished.options, vectors=True, embedder=Reversed())
    for call in (lambda: memories.search("dog called"), lambda: memories.add("After.")):
        with pytest.raises(IncompatibleMemoryError, match="come from another embedder"):
            call()


def test_who_has_the_same_model_open_goes_on(
    open_memlong: Open, furnished: Kind, model_folder: Path
) -> None:
    ml = open_memlong()
    before = ml.memories(user_id="alice").search("harbor of Tarn")
    MemLong.rebuild(model_folder, **furnished.options, embedder="hash")
    assert ml.memories(user_id="alice").search("harbor of Tarn") == before
    assert ml.engine.bank.recall(ALICE, "harbor of Tarn", top_k=3)


def test_there_must_be_a_bank(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(StoreError, match="no bank at"):
        MemLong.rebuild(model_folder, tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    with pytest.raises(ConfigError, match="which bank"):
        MemLong.rebuild(model_folder)
