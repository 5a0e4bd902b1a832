"""Every call that writes to an open bank, for the crash tests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from crash_bank import (
    ARCHIVE,
    EXPORTED,
    FOREIGN,
    LONG_AGO,
    SOON,
    Clock,
    ids_of,
    named,
    opened,
    put_item,
)
from crash_operations import Act, Operation
from crash_whole import KEY, encrypted
from memory_drafts import ALICE, BOB, START, draft, exchange, kv_of

from memlong_agent.memory import Draft, MemoryBank
from memlong_agent.storage import Binding, NewMemory, OldChunk, Owner

DEAD_TURN, TURN = "dead", "turn"


def _pend(bank: MemoryBank) -> object:
    return bank.add(ALICE, [draft("half a turn", pending=TURN)], turn=TURN)


def _add(bank: MemoryBank) -> object:
    return bank.add(ALICE, [draft("My boat is ", "called Nora.")])


def _fill(bank: MemoryBank) -> object:
    # What goes first is decided by age, so by the clock: this has its time already.
    return bank.add(ALICE, [draft("much ", "more", tokens=90, created_at=START)])


def _overfill(bank: MemoryBank) -> object:
    """The first half of that: nothing is evicted yet."""
    bank._settings = bank._settings.model_copy(update={"capacity_tokens": None})
    return _fill(bank)


def _finish(said: str) -> Act:
    def act(bank: MemoryBank) -> object:
        new = exchange(said, "Fine.", session="again")
        return bank.finish_turn(ALICE, TURN, new, recalled=_marks(bank))

    return act


def _written(said: str) -> Act:
    """The first half of a finished turn: the exchange is in the bank."""

    def act(bank: MemoryBank) -> object:
        new = exchange(said, "Fine.", session="again", turn=TURN)
        return bank._put_exchange(ALICE, new, _marks(bank))

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
    return bank.update(ALICE, named(bank, "Rex"), draft("My dog is ", "called Luna."))


def _delete(*texts: str, owner: Owner = ALICE) -> Act:
    return lambda bank: bank.delete(owner, [named(bank, text, owner) for text in texts])


def _evict_chunks(bank: MemoryBank) -> object:
    memory = bank.get(ALICE, named(bank, "three"))
    pks = bank._storage.get(ALICE, memory.id).chunk_pks
    return bank._storage.delete_chunks(ALICE, pks[:3])


def _mark(bank: MemoryBank) -> object:
    return bank.mark(ALICE, TURN, _marks(bank))


def _marks(bank: MemoryBank) -> list[tuple[int, int, float, float | None]]:
    pks = bank._storage.get(ALICE, named(bank, "three")).chunk_pks
    return [(pk, rank, 0.5, None) for rank, pk in enumerate(pks)]


def _bind(bank: MemoryBank) -> object:
    return put_item(bank, "free", "held back", Binding(ALICE, named(bank, "held back")))


def _pass_to(bank: MemoryBank, now: datetime) -> None:
    """Let the bank's clock stand at another time."""
    clock = bank._clock
    assert isinstance(clock, Clock)
    clock.now = now


def _supersede(bank: MemoryBank) -> object:
    return bank.supersede(ALICE, named(bank, "Rex"), draft("My dog is ", "called Luna."))


def _refresh(bank: MemoryBank) -> object:
    return bank.items.rows.refresh([each.pk for each in bank.items.rows.list("default", limit=9)])


def _expire_items(bank: MemoryBank) -> None:
    """Once their time is over; then the clock is put back, to see what is left."""
    _pass_to(bank, START + timedelta(seconds=2e9))
    try:
        bank.items.rows.expire()
    finally:
        _pass_to(bank, START)


def _leave_old(place: Path, clock: Clock) -> None:
    with opened(place, clock) as bank:
        bank.add(ALICE, [draft("older milk", expires_at=LONG_AGO)])


def _beside(bank: MemoryBank, name: str) -> Path:
    """A file beside the bank."""
    assert bank._storage._db.folder is not None
    return bank._storage._db.folder.parent / name


def _import(bank: MemoryBank) -> object:
    path = _beside(bank, ARCHIVE)
    return bank.archives.restore(path, "default", tokenize=ids_of, encode=None, progress=None)


def _import_foreign(bank: MemoryBank) -> object:
    def encoded(memory: NewMemory, before: Sequence[OldChunk]) -> Draft:
        return draft(memory.text)

    path = _beside(bank, FOREIGN)
    return bank.archives.restore(path, "default", tokenize=ids_of, encode=encoded, progress=None)


def _export(owner: Owner | None) -> Act:
    return lambda bank: bank.archives.export(_beside(bank, EXPORTED), "default", owner, None)


def _truncate(bank: MemoryBank) -> None:
    bank._storage._db.purge()


def _close(bank: MemoryBank) -> None:
    bank.close()


def _look(bank: MemoryBank) -> object:
    return bank.list(ALICE)


def _leave_strays(bank: MemoryBank) -> None:
    """A turn that died long ago, and K/V files whose rows were never written."""
    storage = bank._storage
    _pass_to(bank, LONG_AGO)
    bank.add(ALICE, [draft("never finished", pending=DEAD_TURN)], turn=DEAD_TURN)
    _pass_to(bank, START)
    storage._blobs.publish(storage._claimed_spec(), [kv_of("stray", 5) for _ in range(2)])
    storage._grace_s = 0.0


def _none(bank: MemoryBank) -> None:
    return None


_FORGOTTEN = "are forgotten"
WRITES: dict[str, Operation] = {
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
    "supersede": Operation(_supersede),
    "undo a supersede": Operation(_delete("Luna"), before=_supersede, done_by_error=_FORGOTTEN),
    "delete": Operation(_delete("Rex"), done_by_error=_FORGOTTEN),
    "delete three": Operation(_delete("Rex", "three", "half"), done_by_error=_FORGOTTEN),
    "delete with an item": Operation(
        _delete("an item's text", owner=BOB), done_by_error=_FORGOTTEN
    ),
    "clear": Operation(lambda bank: bank.clear(ALICE), done_by_error=_FORGOTTEN),
    "clear a session": Operation(lambda bank: bank.clear(ALICE, "s"), done_by_error=_FORGOTTEN),
    "forget a text": Operation(lambda bank: bank.forget(ALICE, "half"), done_by_error=_FORGOTTEN),
    "forget a text of an item": Operation(
        lambda bank: bank.forget(BOB, "item's"), done_by_error=_FORGOTTEN
    ),
    "erase": Operation(lambda bank: bank.erase(ALICE), done_by_error=_FORGOTTEN),
    "erase one with items": Operation(lambda bank: bank.erase(BOB), done_by_error=_FORGOTTEN),
    "expire": Operation(
        lambda bank: bank._storage.expire(),
        before=lambda bank: _pass_to(bank, SOON),
        done_by_error=_FORGOTTEN,
        by_the_clock=True,
    ),
    "evict chunks": Operation(_evict_chunks, done_by_error=_FORGOTTEN),
    "mark": Operation(_mark),
    "withhold": Operation(
        lambda bank: bank._storage.set_recallable(ALICE, named(bank, "held back"), False)
    ),
    "put an item": Operation(lambda bank: put_item(bank, "new", "a text", ttl_s=1e9)),
    "put an item again": Operation(lambda bank: put_item(bank, "bound", "another text")),
    "bind an item": Operation(_bind),
    "delete an item": Operation(
        lambda bank: bank.items.rows.delete("default", ("shelf", "a"), "free")
    ),
    "refresh items": Operation(_refresh, before=lambda bank: _pass_to(bank, SOON)),
    "expire items": Operation(
        _expire_items,
        by_the_clock=True,
    ),
    "import": Operation(_import),
    "import again": Operation(_import, before=_import),
    "import from another model": Operation(_import_foreign),
    "export": Operation(_export(ALICE)),
    "export all": Operation(_export(None)),
    "add to an encrypted bank": Operation(_add, start=encrypted, options={"key": KEY}),
    "update an encrypted bank": Operation(
        _update, start=encrypted, options={"key": KEY}, done_by_error=_FORGOTTEN
    ),
    "purge": Operation(lambda bank: bank._storage.purge(), before=_delete("Rex")),
    "checkpoint": Operation(lambda bank: bank._storage._db.checkpoint(), before=_many),
    "truncate the log": Operation(_truncate, before=_many),
    # The rows are committed before a file resists; the next sweep goes on.
    "sweep": Operation(
        lambda bank: bank._storage.sweep(),
        before=_leave_strays,
        done_by_error="cannot be used",
        by_the_clock=True,
    ),
    "close": Operation(_close, before=_many, closes=True),
    "close after a purge": Operation(_close, before=_delete("Rex"), closes=True),
    "open a new bank": Operation(_none, opens=True, fresh=True),
    "open and list": Operation(_look, opens=True, start=_leave_old),
}
