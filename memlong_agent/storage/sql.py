"""The bank as one object: rows in a database, K/V in files, kept in step.

In: what base.py describes. Out: the same, with the guarantees of contract.py. This file joins the
parts and holds the order between rows and files; statements are in reads.py and writes.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Self

from sqlalchemy import Connection, update

from memlong_agent.errors import StoreError
from memlong_agent.identity import Identity
from memlong_agent.kv import KVSpec
from memlong_agent.storage import (
    conversion,
    limits,
    migrations,
    reads,
    repair,
    rows,
    sealing,
    superseding,
    upkeep,
    writes,
)
from memlong_agent.storage.archive import Archives
from memlong_agent.storage.base import (
    NewMemory,
    Owner,
    RecallMark,
    StoredMemory,
    Swept,
    utc_now,
)
from memlong_agent.storage.blobs import BlobStore, FileBlobs, MemoryBlobs
from memlong_agent.storage.checks import check
from memlong_agent.storage.chunkrows import Prepared, remove_chunks
from memlong_agent.storage.database import Database
from memlong_agent.storage.folder import open_database
from memlong_agent.storage.forgetting import Forgetter, mentions, note_forgotten
from memlong_agent.storage.guard import Guard
from memlong_agent.storage.items import ItemStore
from memlong_agent.storage.keys import Key
from memlong_agent.storage.kvfile import BlobRef
from memlong_agent.storage.models import memories as memory_table
from memlong_agent.storage.ram_lexical import RamLexical

_log = logging.getLogger("memlong_agent.storage")


class Storage(Forgetter):
    """One memory bank. :class:`StorageBase` says what is promised and what is not.

    Every call may raise StoreLockedError (busy past the timeout), StoreError (the disk), and
    IncompatibleMemoryError when another process has rebuilt the bank for another model meanwhile.
    """

    _guarded = True

    def __init__(
        self,
        db: Database,
        blobs: BlobStore,
        *,
        clock: Callable[[], datetime] = utc_now,
        grace_s: float = 3600.0,
        key: Key | None = None,
    ) -> None:
        super().__init__(db, blobs, db.lexical(), clock, grace_s)
        self.items = ItemStore(db, clock)
        self.max_memories: int | None = None
        """Most memories of one owner; a write above it is a ConfigError, and nothing is written."""
        self._guard = Guard(db)
        try:
            migrations.prepare(db, clock())  # first: under its lock the file is switched to WAL
            sealing.unlock(db, blobs, key)
            sealing.begin(db, blobs, key)
            if db.cipher.sealed:
                conversion.finish_if_idle(db, blobs)
            if self._guarded:
                db.guard = self._guard
            with db.scope() as conn:
                self._secret = sealing.secret_of(db, conn)
                if db.cipher.sealed:
                    self._lexical = RamLexical(conn)
                due = upkeep.sweep_is_due(conn, clock(), grace_s)
            self.archives = Archives(db, blobs, self._lexical, clock, self._secret)
            if due:
                self.sweep()
            self._end_what_is_over()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        database: str | None = None,
        timeout_s: float = 30.0,
        clock: Callable[[], datetime] = utc_now,
        grace_s: float = 3600.0,
        key: Key | None = None,
    ) -> Self:
        """Open the bank in a folder, or make one there; `":memory:"` keeps nothing on disk.

        Args:
            database: URL of the PostgreSQL database that holds the rows; the folder then holds the
                K/V files, and both belong together. Needs the extra [postgres].
            timeout_s: How long to wait for other writers.
            clock: Source of "now", aware.
            grace_s: Age at which files without rows, and pending memories, count as left behind.
            key: Of an encrypted bank; a new bank becomes one. The word index of an encrypted bank
                is built in memory here.

        Raises:
            StoreError: not a bank, not writable, or SQLite without FTS5.
            StoreKeyError: the bank is encrypted and `key` is not its key, or it is plain and there
                is a key.
            StoreVersionError: written by a newer or an older memlong-agent.
        """
        folder = None if str(path) == ":memory:" else Path(path).expanduser().absolute()
        db = open_database(folder, database, timeout_s)
        blobs = MemoryBlobs() if folder is None else FileBlobs(folder)
        return cls(db, blobs, clock=clock, grace_s=grace_s, key=key)

    def close(self) -> None:
        """Let go of files and connections; a bank in memory is gone."""
        self._db.close()
        self._blobs.close()
        if isinstance(self._lexical, RamLexical):
            self._lexical.close()

    def claim(self, encoding: Identity, spec: KVSpec) -> None:
        """Record the model of a new bank, or check that this is the one that wrote it.

        Raises:
            IncompatibleMemoryError: it is not; names each difference.
        """
        self._guard.claim(encoding, spec)
        self._known_spec = spec

    def claim_retrieval(self, retrieval: Identity) -> None:
        """As :meth:`claim`, for the embedder that makes the vectors."""
        self._guard.claim_retrieval(retrieval)

    def add(
        self, owner: Owner, memories: Sequence[NewMemory], *, recalled: Sequence[RecallMark] = ()
    ) -> list[StoredMemory]:
        """Write memories, all or none; returns one record for each, in order.

        `recalled` is what the turn of the first memory recalled, see :meth:`record_recalls`.
        A memory whose unique key is taken is not written twice: the one in the bank is returned.
        Keys are the id, else (session, message_id), else, for documents, (source, ordinal, text).
        Under the first two another text replaces the old one, and the id stays.

        Raises:
            ConfigError: a memory that cannot be stored, or no model has claimed the bank.
        """
        if not memories:
            return []
        with self._writing(memories) as (conn, items):
            now, pk = self._clock(), writes.owner_pk(conn, owner)
            with limits.room(conn, pk, self.max_memories):
                done = writes.put(conn, self._lexical, pk, items, now)
            _note_recalled(conn, pk, memories[0], recalled, now)
            stored = reads.stored_memories(conn, [each.pk for each in done])
        self._drop_replaced([blob_id for each in done for blob_id in each.unused])
        return stored

    def replace(
        self,
        owner: Owner,
        memory_id: str,
        memory: NewMemory,
        *,
        recalled: Sequence[RecallMark] = (),
    ) -> StoredMemory:
        """Give a memory new content under its old id; `recalled` is as for :meth:`add`.

        MemoryNotFoundError if there is none.
        """
        with self._writing([memory]) as (conn, (item,)):
            owner_pk = reads.owner_row(conn, owner)[0]
            pk = reads.memory_pk(conn, owner_pk, memory_id)
            now = self._clock()
            unused = writes.rewrite(conn, self._lexical, owner_pk, pk, item, now)
            _note_recalled(conn, owner_pk, memory, recalled, now)
            stored = reads.stored_memories(conn, [pk])[0]
        self._drop_replaced(unused)
        return stored

    def update(
        self, owner: Owner, memory_id: str, memory: NewMemory, *, purge: bool = True
    ) -> tuple[StoredMemory, tuple[str, ...]]:
        """Give a memory another text, time and meaning under its id; returns it with its mentions.

        Of `memory` the role, text, messages, metadata, time and chunks are used; session, source,
        message id and end stay. MemoryNotFoundError if the owner has none with this id.
        """
        with self._writing([memory]) as (conn, (item,)):
            owner_pk = reads.owner_row(conn, owner)[0]
            pk = reads.memory_pk(conn, owner_pk, memory_id)
            told = mentions(conn, owner_pk, [pk])
            unused = writes.amend(conn, self._lexical, owner_pk, pk, item)
            note_forgotten(conn, owner_pk)
            stored = reads.stored_memories(conn, [pk])[0]
        self._forgotten(0, told, unused, purge)
        return stored, told

    def supersede(
        self, owner: Owner, old_id: str, memory: NewMemory
    ) -> tuple[StoredMemory, tuple[str, ...]]:
        """Write a memory that hides an old one from recall; returns it with the old one's mentions.

        Deleting it by its id undoes this. MemoryNotFoundError if the owner has none with the id,
        ConfigError if the old one is superseded already.
        """
        with self._writing([memory]) as (conn, (item,)):
            owner_pk = reads.owner_row(conn, owner)[0]
            old = reads.memory_pk(conn, owner_pk, old_id)
            told = mentions(conn, owner_pk, [old])
            with limits.room(conn, owner_pk, self.max_memories):
                (new,) = writes.put(conn, self._lexical, owner_pk, [item], self._clock())
            superseding.hide(conn, old, new.pk)
            note_forgotten(conn, owner_pk)
            stored = reads.stored_memories(conn, [new.pk])[0]
        self._drop_replaced(new.unused)
        return stored, told

    def delete_chunks(self, owner: Owner, pks: Sequence[int]) -> int:
        """Evict chunks with their text, and memories that have none left; returns how many chunks.

        A memory of which some chunks stay keeps their text only, and its messages go.
        """
        with self._db.scope(write=True) as conn:
            owner_pk = reads.owner_row(conn, owner)[0]
            touched = {c.memory_pk for c in reads.stored_chunks(conn, owner_pk, pks)}
            unused = remove_chunks(conn, self._lexical, owner_pk, pks)
            writes.trim(conn, sorted(touched))
        self._drop_forgotten(unused)
        return len(unused)

    def settle(self, owner: Owner, turn: str) -> int:
        """Make the pending memories of a finished turn permanent; returns how many."""
        with self._db.scope(write=True) as conn:
            mine = memory_table.c.owner_id == reads.owner_row(conn, owner)[0]
            change = update(memory_table).where(mine, memory_table.c.pending == turn)
            return conn.execute(change.values(pending=None, pending_at=None)).rowcount

    def discard(self, owner: Owner, turn: str) -> int:
        """Forget the pending memories of a failed turn; returns how many."""
        with self._db.scope(write=True) as conn:
            owner_pk = reads.owner_row(conn, owner)[0]
            pks = reads.pending_pks(conn, owner_pk, turn)
            unused = writes.remove_memories(conn, self._lexical, owner_pk, pks)
        self._drop_forgotten(unused)
        return len(pks)

    def record_recalls(self, owner: Owner, turn: str, marks: Sequence[RecallMark]) -> None:
        """Note what a turn recalled. A chunk's counter rises once a turn, however often it is
        marked; of several marks the last is kept. Chunks that are gone, or that a turn still has
        pending, are passed over."""
        with self._db.scope(write=True) as conn:
            owner_pk = reads.owner_row(conn, owner)[0]
            writes.record_recalls(conn, owner_pk, turn, marks, self._clock())

    def set_recallable(self, owner: Owner, memory_id: str, recallable: bool) -> None:
        """Withhold a memory from recall, or give it back. MemoryNotFoundError if there is none."""
        with self._db.scope(write=True) as conn:
            pk = reads.memory_pk(conn, reads.owner_row(conn, owner)[0], memory_id)
            change = update(memory_table).where(memory_table.c.pk == pk)
            conn.execute(change.values(recallable=recallable))

    def sweep(self) -> Swept:
        """Remove what crashes left behind, once it is older than the grace period."""
        return upkeep.sweep(self._db, self._blobs, self._lexical, self._clock(), self._grace_s)

    def condition(self) -> upkeep.Condition:
        """What is no fault of the bank, but worth knowing."""
        built_s = self._lexical.built_s if isinstance(self._lexical, RamLexical) else None
        return upkeep.condition(self._db, self._clock(), built_s)

    def repair(self, encode: repair.Encode, embed: repair.Embed) -> list[str]:
        """Make anew what is derived from the text and missing or damaged: K/V, vectors, words,
        counts, modes of files; sweep. A sentence for each kind of thing done; text is never
        touched. ConfigError if no model has claimed the bank.
        """
        spec = self._claimed_spec()
        swept = self.sweep()
        done = repair.repair(self._db, self._blobs, self._lexical, spec, encode, embed)
        if swept.files or swept.memories:
            done.append(f"{swept.files} stray files, {swept.memories} unfinished memories removed")
        return done

    @contextmanager
    def _writing(
        self, memories: Sequence[NewMemory]
    ) -> Iterator[tuple[Connection, list[Prepared]]]:
        """A write transaction with the files of all chunks durable; they go again if it raises."""
        for memory in memories:
            check(memory)
        kv = [chunk.kv for memory in memories for chunk in memory.chunks]
        refs = self._blobs.publish(self._claimed_spec(), kv)
        ids = [ref.blob_id for ref in refs]
        try:
            prepared = self._prepared(memories, refs)
            with self._db.scope(write=True) as conn:
                # Whatever the clocks said meanwhile: a sweep that took these for strays is over,
                # and this fails; or it waits, and finds their rows.
                self._blobs.touch(ids)
                yield conn, prepared
        except BaseException:
            upkeep.withdraw(self._db, self._blobs, ids)
            raise

    def _prepared(self, memories: Sequence[NewMemory], refs: Sequence[BlobRef]) -> list[Prepared]:
        left, prepared = iter(refs), []
        for memory in memories:
            mine = [next(left) for _ in memory.chunks]
            digest = rows.text_digest(self._db.cipher, self._secret, memory)
            made_at = memory.created_at or self._clock()
            prepared.append(Prepared(memory, mine, digest, made_at))
        return prepared

    def _drop_replaced(self, blob_ids: Sequence[str]) -> None:
        try:
            self._blobs.remove(blob_ids)
        except StoreError as exc:  # the write itself is done
            _log.warning("Replaced K/V files are left to the next sweep: %s", exc)


def _note_recalled(
    conn: Connection, owner: int, memory: NewMemory, marks: Sequence[RecallMark], now: datetime
) -> None:
    if memory.turn is not None:
        writes.record_recalls(conn, owner, memory.turn, marks, now)
