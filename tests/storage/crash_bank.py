"""The bank that is harmed in the crash tests, and all that a user could find in it.

A place is a folder with the bank and archives beside it. K/V of a chunk are a function of its text
and its model, so that a load of the wrong ones is seen.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from memory_drafts import ALICE, BOB, START, Scattered, draft, exchange, kv_of, open_bank
from sqlalchemy import select

from memlong_agent.identity import Identity
from memlong_agent.kv import KVChunk
from memlong_agent.memory import MemoryBank
from memlong_agent.storage import Binding, NewItem, Owner, Storage, StoredMemory
from memlong_agent.storage.models import recalls

CAROL = Owner("default", "session", "carol")
DAVE = Owner("default", "user", "dave")
OTHER = Identity({"model": "other"})
LONG_AGO, SOON, LATER = (START + timedelta(days=days) for days in (-1, 1, 2))
ARCHIVE, FOREIGN, EXPORTED = "in.memlong", "foreign.memlong", "out.memlong"
State = dict[str, Any]


class Clock:
    """A clock that stands, until it jumps at a reading: forward, back, or to and fro."""

    def __init__(self, at: int = 0, jumps: Sequence[int] = (0,)) -> None:
        """`jumps` are the years by which it is wrong from reading `at` on, one after the other."""
        self.now, self.readings = START, 0
        self._at, self._jumps = at, jumps

    def __call__(self) -> datetime:
        self.readings += 1
        if not self._at or self.readings < self._at:
            return self.now
        years = self._jumps[min(self.readings - self._at, len(self._jumps) - 1)]
        return self.now + timedelta(days=365 * years)

    def start(self) -> None:
        """Count from here; what was read before met no jump."""
        self.readings = 0


class Turned(Scattered):
    """Another embedder: each text has another direction."""

    identity = Identity({"embedder": "turned"})

    def embed_query(self, text: str) -> Any:
        return super().embed_query(f"turned {text}")


def other_kv_of(body: str, tokens: int) -> KVChunk:
    """K/V of the other model."""
    return kv_of(f"other {body}", tokens)


_KV: dict[str, Callable[[str, int], KVChunk]] = {"test": kv_of, "other": other_kv_of}


def opened(place: Path, clock: Callable[[], datetime], **options: Any) -> MemoryBank:
    """The bank of a place. What the clock says is the same in all processes."""
    options = {"embedder": Scattered(), "index_backend": "torch", **options}
    return open_bank(place / "bank", clock=clock, **options)


def furnish(place: Path) -> None:
    """A bank with something of every kind, and two archives to import: of its own model, and of
    another."""
    place.mkdir()
    with opened(place, Clock()) as bank:
        bank.add(ALICE, [exchange("My dog is called Rex.", "Noted.", message_id="m1")])
        bank.add(ALICE, [draft("one ", "two ", "three ", "four ", "five ", session="long")])
        read = {"role": "document", "source": "notes.txt", "session": None}
        bank.add(ALICE, [draft("first half ", "second half", ordinal=0, **read)])
        bank.add(ALICE, [draft("old milk", expires_at=SOON), draft("held back")])
        bank.add(BOB, [draft("old bread", expires_at=SOON), draft("new bread", expires_at=LATER)])
        bank.add(BOB, [exchange("My cat is called Tom.", "Noted.", session="s")])
        bank.add(CAROL, [exchange("My fish is called Wanda.", "Noted.", session="carol")])
        bank.add(ALICE, [exchange("What is up?", "Nothing.", session="again")])
        _mark(bank, "Rex", "earlier")
        bound = bank.add(BOB, [draft("an item's text", session=None)]).memories[0].id
        put_item(bank, "bound", "an item's text", Binding(BOB, bound), ttl_s=1e9)
        put_item(bank, "free", "no memory", ttl_s=1e9)
        put_item(bank, "lasting", "no end")
    _archive(place, ARCHIVE, kv_of)
    _archive(place, FOREIGN, other_kv_of, encoding=OTHER)


def _archive(place: Path, name: str, kv: Callable[[str, int], KVChunk], **options: Any) -> None:
    elsewhere = place / "elsewhere"
    with opened(elsewhere, Clock(), **options) as bank:
        for owner, text in (ALICE, "My horse is called Ada."), (BOB, "an imported item"):
            new = exchange(text, "Noted.", session="imported")
            chunks = [(cut, kv(cut.body, len(cut.token_ids))) for cut, _ in new.chunks]
            (memory,) = bank.add(owner, [replace(new, chunks=chunks)]).memories
        put_item(bank, "imported", "an imported item", Binding(BOB, memory.id))
        _mark(bank, "Ada", "told")
        bank.archives.export(place / name, "default", None, None)
    shutil.rmtree(elsewhere)


def _mark(bank: MemoryBank, word: str, turn: str) -> None:
    hit = bank.recall(ALICE, word, top_k=1)[0]
    bank.mark(ALICE, turn, [(hit.chunk.pk, 0, 0.5, 0.1)])


def put_item(
    bank: MemoryBank, key: str, text: str, bound: Binding | None = None, **fields: Any
) -> object:
    item = NewItem(("shelf", "a"), key, {"text": text}, bound=bound, **fields)
    return bank.items.put("default", item, [text])


def named(bank: MemoryBank, text: str, owner: Owner = ALICE) -> str:
    """Id of the memory that has a text."""
    return next(
        each.id
        for each in bank._storage.list_memories(owner, include_pending=True)
        if text in each.text
    )


def ids_of(texts: list[str]) -> list[list[int]]:
    """The tokenizer of these banks: all texts have the same eight tokens."""
    return [list(range(8)) for _ in texts]


def state_of(bank: MemoryBank) -> State:
    """All that a user could find in the bank, but random ids. A row is [whether it ends by itself,
    what it says, its times]."""
    storage = bank._storage
    encoding, retrieval = bank.identities()
    with storage._db.scope() as conn:
        marks = Counter(conn.scalars(select(recalls.c.memory_pk)))
    owned: dict[str, list[list[Any]]] = {}
    for owner in storage.stats():
        memories = storage.list_memories(owner, include_pending=True)
        texts = {each.id: each.text for each in memories}
        pks = [pk for memory in memories for pk in memory.chunk_pks]
        model = encoding.parts.get("model")
        parts = dict(zip(pks, _parts(storage, owner, pks, model), strict=True))
        rows = [
            _row(
                replace(each, superseded_by=texts.get(each.superseded_by or "")),
                marks[each.pk],
                [parts[pk] for pk in each.chunk_pks],
            )
            for each in memories
        ]
        owned[f"{owner.kind} {owner.name}"] = sorted(rows)
    items = [
        [
            i.expires_at is not None,
            repr((i.namespace, i.key, i.value, i.bound is not None, _digest(i.vectors))),
            repr((i.created_at, i.updated_at, i.expires_at)),
        ]
        for i in storage.items.list("default", limit=-1, vectors=True)
    ]
    identity = {**encoding.parts, **retrieval.parts}
    return {"owned": owned, "items": sorted(items), "recalls": marks.total(), "identity": identity}


def _row(memory: StoredMemory, marks: int, parts: Sequence[Any]) -> list[Any]:
    ends = memory.expires_at is not None
    times = repr((memory.created_at, memory.expires_at, [each[0] for each in parts]))
    plain = replace(
        memory,
        pk=0,
        id="",
        chunk_pks=(),
        created_at=START,
        expires_at=None,
    )
    return [ends, repr((plain, marks, [each[1:] for each in parts])), times]


def _parts(
    storage: Storage, owner: Owner, pks: Sequence[int], model: str | None
) -> Iterator[tuple[Any, ...]]:
    """What is kept of each chunk. K/V that are not those of its text raise: a wrong load."""
    found, vectors = storage.vectors_of(owner, pks)
    vector_of = dict(zip(found.tolist(), vectors, strict=True))
    for chunk, kv in zip(storage.chunks(owner, pks), storage.read_kv(pks), strict=True):
        if model in _KV:
            meant = _KV[model](chunk.text, chunk.tokens)
            if not (meant.keys.equal(kv.keys) and meant.values.equal(kv.values)):
                raise AssertionError(f"wrong K/V were loaded for {chunk.text!r}")
        data = b"".join(each.contiguous().view(-1).float().numpy() for each in (kv.keys, kv.values))
        vector = _digest(vector_of[chunk.pk].tobytes())
        kept = (chunk.ordinal, chunk.header, chunk.text, chunk.token_ids, chunk.counter)
        yield chunk.last_recalled_at, *kept, vector, _digest(data)


def _digest(data: Any) -> str:
    return hashlib.sha256(data if data is not None else b"none").hexdigest()[:12]


def timeless(state: State) -> State:
    """What of a state no clock may take away or change: no times, nothing that ends by itself."""
    owned = {name: _lasting(rows) for name, rows in state["owned"].items()}
    kept = {**state, "owned": owned, "items": _lasting(state["items"]), "recalls": None}
    if state.get("exported"):
        kept["exported"] = timeless(state["exported"])
    return kept


def _lasting(rows: Sequence[Sequence[Any]]) -> list[str]:
    return [row[1] for row in rows if not row[0]]
