"""The half of the bank that forgets: by id, by text, by session, by owner, by time.

In: an owner and what is to go. Out: how much went, and which of the owner's exchanges recalled it.
Every call is one transaction; then the K/V files go, and with `purge` the last bytes of it all.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, exists, func, insert, or_, select, update

from memlong_agent.errors import StoreError, StoreLockedError
from memlong_agent.records import Forgotten
from memlong_agent.storage import heap, matching, reads, superseding, writes
from memlong_agent.storage.base import Owner
from memlong_agent.storage.batching import batches
from memlong_agent.storage.items import ItemStore
from memlong_agent.storage.items.rows import delete_bound, delete_items, delete_owned, owned_items
from memlong_agent.storage.lexical import Lexical
from memlong_agent.storage.models import events, memories, meta, owners, recalls, sessions
from memlong_agent.storage.reading import Reader
from memlong_agent.storage.upgrade import drop_backups

_log = logging.getLogger("memlong_agent.storage")
_AT_ONCE = 500  # memories that end in one transaction
# Has the events and the number of all who were erased; no owner has its kind.
_ERASED = {"tenant": "", "kind": reads.ERASED, "name": ""}


class Forgetter(Reader):
    """Forgetting calls of :class:`~memlong_agent.storage.sql.Storage`.

    `purge` leaves no byte of what went in the bank's files, see :meth:`purge`; without it rows and
    K/V files go now, and the bytes with the next purge. Raises StoreError when a file resists or
    the purge has to wait for others too long; the memories are forgotten all the same.
    """

    items: ItemStore

    def delete(self, owner: Owner, ids: Sequence[str], *, purge: bool = True) -> Forgotten:
        """Forget memories, and items bound to them. What they superseded is recalled again.

        MemoryNotFoundError for any unknown id: none goes.
        """
        with self._db.scope(write=True) as conn:
            owner_pk = reads.owner_row(conn, owner)[0]
            pks = [reads.memory_pk(conn, owner_pk, each) for each in dict.fromkeys(ids)]
            told = mentions(conn, owner_pk, pks)
            unused = forget_memories(conn, self._lexical, owner_pk, pks, undo=True)
        return self._forgotten(len(pks), told, unused, purge)

    def forget(self, owner: Owner, text: str, *, purge: bool = True) -> Forgotten:
        """Forget every memory that contains a text, and the owner's items that do.

        What counts as containing is said in matching.py. Reads all the owner's texts. ConfigError
        for a blank text.
        """
        pattern = matching.pattern(text)
        with self._db.scope() as conn:  # 5 s for 1e5 memories, in which others may write
            seen = _containing(conn, owner, pattern)
        with self._db.scope(write=True) as conn:
            owner_pk = reads.owner_row(conn, owner)[0]
            if (owner_pk, reads.last_event(conn, owner_pk)) != seen[0]:
                seen = _containing(conn, owner, pattern)
            found = seen[1]
            for item_pk, memory_pk, texts in owned_items(conn, owner_pk):
                if matching.holds(pattern, texts):
                    delete_items(conn, [item_pk])
                    found |= set() if memory_pk is None else {memory_pk}
            pks = sorted(found)
            told = mentions(conn, owner_pk, pks)
            unused = forget_memories(conn, self._lexical, owner_pk, pks)
        return self._forgotten(len(pks), told, unused, purge)

    def clear(self, owner: Owner, session: str | None = None, *, purge: bool = True) -> Forgotten:
        """Forget all of an owner, items and the recall log too, or all of one session."""
        with self._db.scope(write=True) as conn:
            owner_pk = reads.owner_row(conn, owner)[0]
            pks = reads.memory_pks(conn, owner_pk, session=session)
            told = mentions(conn, owner_pk, pks)
            unused = forget_memories(conn, self._lexical, owner_pk, pks)
            rows = delete(sessions).where(sessions.c.owner_id == owner_pk)
            if session is None:
                delete_owned(conn, owner_pk)
                conn.execute(delete(recalls).where(recalls.c.owner_id == owner_pk))
            else:
                rows = rows.where(sessions.c.external_id == session)
            conn.execute(rows)
        return self._forgotten(len(pks), told, unused, purge)

    def erase(self, owner: Owner, *, purge: bool = True) -> Forgotten:
        """As :meth:`clear` of all, and the owner's name goes too.

        What stays says nothing of whom: the numbers of chunks that were deleted, so that word
        indexes of other processes notice, and one number that rises.
        """
        with self._db.scope(write=True) as conn:
            owner_pk = reads.owner_row(conn, owner)[0]
            pks = reads.memory_pks(conn, owner_pk)
            unused = forget_memories(conn, self._lexical, owner_pk, pks)
            delete_owned(conn, owner_pk)
            _erase_row(conn, owner_pk)
        return self._forgotten(len(pks), (), unused, purge)

    def expire(self) -> int:
        """Forget memories whose time is over, at most 500 at once; returns how many.

        One look into an index when there are none. Their bytes go with the next purge.
        """
        now = self._clock()
        with self._db.scope() as conn:
            if not _over(conn, now):
                return 0
        unused: list[str] = []
        with self._db.scope(write=True) as conn:
            over = _over(conn, now)
            for owner_pk, pks in over.items():
                unused += forget_memories(conn, self._lexical, owner_pk, pks)
        self._drop_forgotten(unused)
        return sum(map(len, over.values()))

    def times_forgotten(self, owner: Owner) -> int:
        """A number that rises whenever memories of the owner are forgotten or changed, by any
        process: not when they are evicted, or written anew by the turn that wrote them."""
        with self._db.scope() as conn:
            mine = (owners.c.tenant == owner.tenant) & (owners.c.name == owner.name)
            mine &= owners.c.kind == owner.kind
            erased = [owners.c[name] == value for name, value in _ERASED.items()]
            which = or_(mine, erased[0] & erased[1] & erased[2])
            return int(conn.scalar(select(func.sum(owners.c.forgotten)).where(which)) or 0)

    def unpurged(self) -> bool:
        """Whether something was forgotten whose bytes may still be in the bank's files."""
        with self._db.scope() as conn:
            return reads.meta_value(conn, writes.UNPURGED) is not None

    def purge(self) -> None:
        """Leave no byte of forgotten, changed and evicted memories in the bank's files.

        Rows are overwritten when they are deleted, but the word index, pages that were rearranged
        the write-ahead log and what an upgrade backed up keep copies. They go here, in time that
        grows with the bank: 1.2 s at 1e5 chunks. Free memory goes back to the system.
        StoreLockedError if others keep reading the old pages past the timeout: purge again then.
        """
        if self._db.folder is not None:
            drop_backups(self._db.folder)
        with self._db.scope(write=True) as conn:
            self._lexical.optimize(conn)
            mark = reads.meta_value(conn, writes.UNPURGED)
        try:
            self._db.purge()
        except StoreLockedError as exc:
            raise StoreLockedError(
                "What was forgotten is gone from rows and K/V files, but others keep reading the "
                f"bank at {self._db.place}, so bytes of it are left in its database. When they "
                "have finished, run memlong doctor, or call purge()."
            ) from exc
        if mark is not None:
            with self._db.scope(write=True) as conn:  # unless more was forgotten meanwhile
                mine = (meta.c.key == writes.UNPURGED) & (meta.c.value == mark)
                conn.execute(delete(meta).where(mine))
        heap.give_back()

    def _end_what_is_over(self) -> None:
        """At open, where there is time: what has expired goes, and what a purge was put off for."""
        while self.expire() == _AT_ONCE:
            pass
        self.items.expire()
        if self.unpurged():
            try:
                self.purge()
            except StoreLockedError as exc:
                _log.warning("%s", exc)

    def _forgotten(
        self, number: int, told: tuple[str, ...], unused: Sequence[str], purge: bool
    ) -> Forgotten:
        self._drop_forgotten(unused)
        if purge:
            self._purge_after()
        return Forgotten(memories=number, mentions=told)

    def _purge_after(self) -> None:
        """Purge when rows and files are gone already: an error must not look as if they were not.

        A bank that is busy says so itself.
        """
        try:
            self.purge()
        except StoreLockedError:
            raise
        except StoreError as exc:
            raise StoreError(
                f"The memories are forgotten, but their last bytes are still there: {exc} Then run "
                "memlong doctor, or call purge()."
            ) from exc

    def _drop_forgotten(self, blob_ids: Sequence[str]) -> None:
        try:
            self._blobs.remove(blob_ids)
        except StoreError as exc:
            raise StoreError(
                f"The memories are forgotten, but some of their K/V files are still there: {exc} "
                "Then run memlong doctor --repair."
            ) from exc


def _containing(
    conn: Connection, owner: Owner, pattern: re.Pattern[str]
) -> tuple[tuple[int, int], set[int]]:
    """The owner's key and newest event, and the keys of the memories that contain a text."""
    owner_pk = reads.owner_row(conn, owner)[0]
    state = (owner_pk, reads.last_event(conn, owner_pk))
    return state, set(matching.memories_with(conn, owner_pk, pattern))


def mentions(conn: Connection, owner_pk: int, pks: Sequence[int]) -> tuple[str, ...]:
    """Ids of the owner's exchanges, not among `pks`, whose turns recalled a memory of `pks`; by
    time."""
    found: dict[int, tuple[datetime, int, str]] = {}
    same_turn = (recalls.c.owner_id == memories.c.owner_id) & (recalls.c.turn == memories.c.turn)
    query = select(memories.c.created_at, memories.c.pk, memories.c.id).join(recalls, same_turn)
    for batch in batches(pks):
        mine = (memories.c.owner_id == owner_pk) & recalls.c.memory_pk.in_(batch)
        found |= {row.pk: tuple(row) for row in conn.execute(query.where(mine))}
    return tuple(each[2] for each in sorted(found.values()) if each[1] not in set(pks))


def forget_memories(
    conn: Connection, lexical: Lexical, owner_pk: int, pks: Sequence[int], *, undo: bool = False
) -> list[str]:
    """Delete memories with their items, their lines in the recall log and sessions that they leave
    empty; returns their K/V files.

    `undo` is as in superseding.py.
    """
    touched: set[int] = set()
    for batch in batches(pks):
        these = memories.c.pk.in_(batch)
        touched |= set(conn.scalars(select(memories.c.session_id).where(these))) - {None}
        conn.execute(delete(recalls).where(recalls.c.memory_pk.in_(batch)))
    superseding.release(conn, pks, undo=undo)
    delete_bound(conn, pks)
    unused = writes.remove_memories(conn, lexical, owner_pk, pks)
    for batch in batches(touched):
        empty = ~exists().where(memories.c.session_id == sessions.c.pk)
        conn.execute(delete(sessions).where(sessions.c.pk.in_(batch), empty))
    note_forgotten(conn, owner_pk)
    return unused


def note_forgotten(conn: Connection, owner_pk: int) -> None:
    """Raise the owner's number, and remember that there are bytes to purge."""
    mine = update(owners).where(owners.c.pk == owner_pk)
    conn.execute(mine.values(forgotten=owners.c.forgotten + 1))
    writes.note_unpurged(conn)


def _over(conn: Connection, now: datetime) -> dict[int, list[int]]:
    """Memories whose time is over, by owner."""
    query = select(memories.c.owner_id, memories.c.pk).where(memories.c.expires_at <= now)
    found: dict[int, list[int]] = {}
    for owner_pk, pk in conn.execute(query.order_by(memories.c.expires_at).limit(_AT_ONCE)):
        found.setdefault(owner_pk, []).append(pk)
    return found


def _erase_row(conn: Connection, owner_pk: int) -> None:
    """Delete an owner; its number and the deletions it recorded pass to nobody."""
    times = conn.scalar(select(owners.c.forgotten).where(owners.c.pk == owner_pk))
    if times is None:
        return
    nobody = select(owners.c.pk).where(*(owners.c[name] == v for name, v in _ERASED.items()))
    if (pk := conn.scalar(nobody)) is None:
        conn.execute(insert(owners).values(_ERASED))
        pk = conn.scalar(nobody)
    conn.execute(delete(events).where(events.c.owner_id == owner_pk, events.c.op == "add"))
    conn.execute(update(events).where(events.c.owner_id == owner_pk).values(owner_id=pk))
    higher = owners.c.forgotten + times
    conn.execute(update(owners).where(owners.c.pk == pk).values(forgotten=higher))
    conn.execute(delete(owners).where(owners.c.pk == owner_pk))
