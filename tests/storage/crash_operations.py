"""What is interrupted in the crash tests: every call that writes to a bank, and the bank it meets.

In: a bank folder. Out: for each operation what it does, and the states it may leave behind when it
is cut short. Used by crash_server.py alone; knows no fault.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from memory_drafts import ALICE, BOB, START, Scattered, draft, exchange, kv_of, open_bank
from sqlalchemy import func, select

from memlong_agent.memory import MemoryBank
from memlong_agent.storage import Binding, NewItem, Owner, Storage
from memlong_agent.storage.models import recalls

CAROL = Owner("default", "session", "carol")
DAVE = Owner("default", "user", "dave")
OWNERS = (ALICE, BOB, CAROL, DAVE)
DEAD_TURN, TURN = "dead", "turn"
LONG_AGO = START - timedelta(days=1)
State = dict[str, Any]
Act = Callable[[MemoryBank], object]


@dataclass
class Still:
    """A clock that stands where the test puts it."""

    now: datetime = START

    def __call__(self) -> datetime:
        return self.now


def opened(folder: Path, **options: Any) -> MemoryBank:
    """The bank of these tests. What the clock says is the same in all processes."""
    options = {"clock": Still(), "index_backend": "torch", **options}
    return open_bank(folder, embedder=Scattered(), **options)


@dataclass(frozen=True)
class Operation:
    """One call that writes."""

    act: Act
    partly: Sequence[Act] = ()
    """Beginnings of the call, each of which is committed on its own, in order."""
    done_by_error: str = ""
    """Words of an error that says the call was done all the same."""
    partly_returned: bool = False
    """The call may end well with only a beginning done: it leaves the rest for later, and says so
    in the log."""
    before: Act | None = None
    """What is done beforehand in the same process, unharmed."""
    options: dict[str, Any] = field(default_factory=dict)
    opens: bool = False
    """It is the opening of the bank that is interrupted, and `act` is what follows it."""
    fresh: bool = False
    """It meets no bank, but an empty path."""


def furnish(folder: Path) -> None:
    """A bank with something of every kind."""
    with opened(folder) as bank:
        bank.add(ALICE, [exchange("My dog is called Rex.", "Noted.", message_id="m1")])
        bank.add(ALICE, [draft("one ", "two ", "three ", "four ", "five ", session="long")])
        read = {"role": "document", "source": "notes.txt", "session": None}
        bank.add(ALICE, [draft("first half ", "second half", ordinal=0, **read)])
        bank.add(ALICE, [draft("old milk", expires_at=LONG_AGO), draft("held back")])
        bank.add(BOB, [exchange("My cat is called Tom.", "Noted.", session="s")])
        bank.add(CAROL, [exchange("My fish is called Wanda.", "Noted.", session="carol")])
        bank.add(ALICE, [exchange("What is up?", "Nothing.", session="again")])
        hit = bank.recall(ALICE, "Rex", top_k=1)[0]
        bank.mark(ALICE, "earlier", [(hit.chunk.pk, 0, 0.5, 0.1)])
        bound = bank.add(BOB, [draft("an item's text", session=None)]).memories[0].id
        put_item(bank, "bound", "an item's text", Binding(BOB, bound))
        put_item(bank, "free", "no memory")


def put_item(bank: MemoryBank, key: str, text: str, bound: Binding | None = None) -> object:
    item = NewItem(("shelf", "a"), key, {"text": text}, ttl_s=1e9, bound=bound)
    return bank.items.put("default", item, [text])


def state_of(bank: MemoryBank) -> State:
    """All that a user could find in the bank, but random ids."""
    storage = bank._storage
    owned: dict[str, list[str]] = {}
    for owner in OWNERS:
        memories = storage.list_memories(owner, include_pending=True)
        pks = [pk for memory in memories for pk in memory.chunk_pks]
        parts = dict(zip(pks, _parts(storage, owner, pks), strict=True))
        rows = [
            repr((replace(each, pk=0, id="", chunk_pks=()), [parts[pk] for pk in each.chunk_pks]))
            for each in memories
        ]
        owned[owner.name] = sorted(rows)
    items = [
        repr((i.namespace, i.key, i.value, i.bound is not None, _digest(i.vectors)))
        for i in storage.items.list("default", limit=-1, vectors=True)
    ]
    with storage._db.scope() as conn:
        marks = conn.scalar(select(func.count()).select_from(recalls))
    return {**owned, "items": sorted(items), "recalls": marks}


def _parts(storage: Storage, owner: Owner, pks: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """What is kept of each chunk. K/V that are not those of its text raise: a wrong load."""
    found, vectors = storage.vectors_of(owner, pks)
    vector_of = dict(zip(found.tolist(), vectors, strict=True))
    for chunk, kv in zip(storage.chunks(owner, pks), storage.read_kv(pks), strict=True):
        meant = kv_of(chunk.text, chunk.tokens)
        if not (meant.keys.equal(kv.keys) and meant.values.equal(kv.values)):
            raise AssertionError(f"wrong K/V were loaded for {chunk.text!r}")
        vector = _digest(vector_of[chunk.pk].tobytes())
        yield chunk.ordinal, chunk.header, chunk.text, chunk.token_ids, chunk.counter, vector


def _digest(data: Any) -> str:
    return hashlib.sha256(data if data is not None else b"none").hexdigest()[:12]


def _named(bank: MemoryBank, text: str, owner: Owner = ALICE) -> str:
    return next(
        each.id
        for each in bank._storage.list_memories(owner, include_pending=True)
        if text in each.text
    )


def _pend(bank: MemoryBank) -> object:
    return bank.add(ALICE, [draft("half a turn", pending=TURN)], turn=TURN)


def _add(bank: MemoryBank) -> object:
    return bank.add(ALICE, [draft("My boat is ", "called Nora.")])


def _fill(bank: MemoryBank) -> object:
    return bank.add(ALICE, [draft("much ", "more", tokens=90)])


def _overfill(bank: MemoryBank) -> object:
    """The first half of that: nothing is evicted yet."""
    bank._settings = bank._settings.model_copy(update={"capacity_tokens": None})
    return _fill(bank)


def _finish(said: str) -> Act:
    return lambda bank: bank.finish_turn(ALICE, TURN, exchange(said, "Fine.", session="again"))


def _written(said: str) -> Act:
    """The first half of a finished turn: the exchange is in the bank."""

    def act(bank: MemoryBank) -> object:
        return bank._put_exchange(ALICE, exchange(said, "Fine.", session="again", turn=TURN))

    return act


def _many(bank: MemoryBank) -> object:
    drafts = [draft(*(f"{name} {i} " for i in range(3)), session="long") for name in "xyz"]
    return bank.add(ALICE, drafts)


def _read_again(bank: MemoryBank) -> object:
    fields = {"role": "document", "source": "notes.txt", "session": None, "ordinal": 0}
    return bank.add(ALICE, [draft("first half ", "second half", **fields)])


def _say_again(bank: MemoryBank) -> object:
    return bank.add(ALICE, [exchange("My dog is called Max.", "Noted.", message_id="m1")])


def _update(bank: MemoryBank) -> object:
    return bank.update(ALICE, _named(bank, "Rex"), draft("My dog is ", "called Luna."))


def _delete(*texts: str, owner: Owner = ALICE) -> Act:
    return lambda bank: bank.delete(owner, [_named(bank, text, owner) for text in texts])


def _evict_chunks(bank: MemoryBank) -> object:
    memory = bank.get(ALICE, _named(bank, "three"))
    pks = bank._storage.get(ALICE, memory.id).chunk_pks
    return bank._storage.delete_chunks(ALICE, pks[:3])


def _mark(bank: MemoryBank) -> object:
    pks = bank._storage.get(ALICE, _named(bank, "three")).chunk_pks
    return bank.mark(ALICE, TURN, [(pk, rank, 0.5, None) for rank, pk in enumerate(pks)])


def _bind(bank: MemoryBank) -> object:
    return put_item(bank, "free", "held back", Binding(ALICE, _named(bank, "held back")))


def _truncate(bank: MemoryBank) -> None:
    bank._storage._db.purge()


def _look(bank: MemoryBank) -> object:
    return bank.list(ALICE)


def _leave_strays(bank: MemoryBank) -> None:
    """A turn that died long ago, and K/V files whose rows were never written."""
    storage = bank._storage
    storage._clock = Still(LONG_AGO)
    bank.add(ALICE, [draft("never finished", pending=DEAD_TURN)], turn=DEAD_TURN)
    storage._clock = Still()
    storage._blobs.publish(storage._claimed_spec(), [kv_of("stray", 5) for _ in range(2)])
    storage._grace_s = 0.0


def _none(bank: MemoryBank) -> None:
    return None


_FORGOTTEN = "are forgotten"
OPERATIONS: dict[str, Operation] = {
    "add": Operation(_add),
    "add nine chunks": Operation(_many),
    "add a document again": Operation(_read_again),
    "add a message id again": Operation(_say_again),
    "add and evict": Operation(
        _fill, partly=[_overfill], partly_returned=True, options={"capacity_tokens": 256}
    ),
    "finish a turn": Operation(
        _finish("All new."),
        partly=[_written("All new.")],
        partly_returned=True,
        before=_pend,
    ),
    "finish a repeated turn": Operation(
        _finish("What is up?"),
        partly=[_written("What is up?")],
        partly_returned=True,
        before=_pend,
    ),
    "discard a turn": Operation(
        lambda bank: bank.discard_turn(ALICE, TURN), before=_pend, done_by_error=_FORGOTTEN
    ),
    "settle a turn": Operation(lambda bank: bank._storage.settle(ALICE, TURN), before=_pend),
    "update": Operation(_update, done_by_error=_FORGOTTEN),
    "delete": Operation(_delete("Rex"), done_by_error=_FORGOTTEN),
    "delete three": Operation(_delete("Rex", "three", "half"), done_by_error=_FORGOTTEN),
    "delete with an item": Operation(
        _delete("an item's text", owner=BOB), done_by_error=_FORGOTTEN
    ),
    "clear": Operation(lambda bank: bank.clear(ALICE), done_by_error=_FORGOTTEN),
    "clear a session": Operation(lambda bank: bank.clear(ALICE, "s"), done_by_error=_FORGOTTEN),
    "evict chunks": Operation(_evict_chunks, done_by_error=_FORGOTTEN),
    "mark": Operation(_mark),
    "withhold": Operation(
        lambda bank: bank._storage.set_recallable(ALICE, _named(bank, "held back"), False)
    ),
    "put an item": Operation(lambda bank: put_item(bank, "new", "a text")),
    "put an item again": Operation(lambda bank: put_item(bank, "bound", "another text")),
    "bind an item": Operation(_bind),
    "delete an item": Operation(
        lambda bank: bank.items.rows.delete("default", ("shelf", "a"), "free")
    ),
    "purge": Operation(lambda bank: bank._storage.purge(), before=_delete("Rex")),
    "checkpoint": Operation(lambda bank: bank._storage._db.checkpoint(), before=_many),
    "truncate the log": Operation(_truncate, before=_many),
    # The rows are committed before a file resists; the next sweep goes on.
    "sweep": Operation(
        lambda bank: bank._storage.sweep(), before=_leave_strays, done_by_error="cannot be used"
    ),
    "close": Operation(lambda bank: bank.close(), before=_many),
    "open a new bank": Operation(_none, opens=True, fresh=True),
    "open and list": Operation(_look, opens=True),
}
