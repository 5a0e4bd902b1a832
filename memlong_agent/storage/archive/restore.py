"""Into a bank: a checked archive, all of it or nothing.

In: a scratch full of checked rows, the archive's K/V. Out: memories under their old ids, with
times, counters, recall log and items. K/V files are published first, while everybody may write;
then one transaction writes all rows: readers go on meanwhile, other writers wait for it. A failure
withdraws the files, and those of a process that died are strays for the sweep. Memory is bounded by
one memory and a batch of chunks, however many there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy import Connection, bindparam, insert, select, update

from memlong_agent.errors import ArchiveError, ConfigError, StoreLockedError
from memlong_agent.kv import KVChunk, KVSpec
from memlong_agent.storage import limits, reads, rows, upkeep, writes
from memlong_agent.storage.archive import fields, lines, tensors
from memlong_agent.storage.archive.itemrows import put_back
from memlong_agent.storage.archive.scratch import ChunkRow, Row, Scratch
from memlong_agent.storage.base import Matrix, NewChunk, NewMemory, OldChunk, Owner
from memlong_agent.storage.blobs import BlobStore
from memlong_agent.storage.chunkrows import Prepared, insert_chunks
from memlong_agent.storage.database import Database
from memlong_agent.storage.items import StoredItem
from memlong_agent.storage.kvfile import BlobRef
from memlong_agent.storage.lexical import Lexical
from memlong_agent.storage.models import chunks as chunk_table
from memlong_agent.storage.models import memories, recalls

Read = Callable[[int, int], bytearray]
"""Offset and size in, bytes of the archive out."""
Encode = Callable[[NewMemory, Sequence[OldChunk]], Sequence[NewChunk]]
"""A memory and how it was cut in, its chunks with K/V and vectors out."""
Embed = Callable[[Mapping[str, Any]], Matrix | None]
"""An item's value in, vectors (n, E) of its texts out."""
_BATCH_BYTES = 64 << 20
_BATCH_FILES = 64
_BATCH_ROWS = 256  # chunks that go into the tables at once: 1.5 MB with vectors of 1024 dimensions
_TOUCH_S = 600.0  # well below the grace period of the sweep


# Built once: it is asked for every memory.
_BY_ID = select(memories.c.pk, memories.c.owner_id).where(memories.c.id == bindparam("memory_id"))


@dataclass(frozen=True, slots=True)
class Bank:
    """What a restore writes into."""

    db: Database
    blobs: BlobStore
    lexical: Lexical
    spec: KVSpec
    tenant: str
    secret: str
    """Of the text digests."""
    now: datetime
    guard: Callable[[Connection], None]
    """Called first in the transaction that writes: raises if the bank is another by now."""
    max_memories: int | None


@dataclass(frozen=True, slots=True)
class Counted:
    """What a restore wrote."""

    memories: int = 0
    present: int = 0
    """Memories that were in the bank already."""
    items: int = 0
    owners: tuple[Owner, ...] = ()
    """Whose memories were written."""


class Restore:
    """One restore into one bank."""

    def __init__(self, bank: Bank, scratch: Scratch) -> None:
        self._bank, self._scratch = bank, scratch
        self._unnoted: list[str] = []  # published, and not in the scratch yet
        self._touched = time.monotonic()

    def run(
        self,
        read: Read,
        encode: Encode | None,
        embed: Embed | None,
        progress: Callable[[float], None],
    ) -> Counted:
        """Publish files, then write all rows. With `encode` K/V and vectors of memories are made
        anew, with `embed` those of items.

        Raises:
            ArchiveError: a memory collides with one in the bank, or an owner's limit is reached.
            StoreError: the disk failed, or the bank was changed in between. Nothing is written.
        """
        try:
            self._publish(read, encode, progress)
            if embed is not None:
                self._scratch.change_vectors(partial(_embedded, embed))
            with self._bank.db.scope(write=True) as conn:
                self._bank.guard(conn)
                self._touch()  # see Storage._writing
                counted = self._write(conn)
            if counted.present:
                self._withdraw()  # of memories that somebody else restored meanwhile
            return counted
        except ConfigError as exc:
            self._withdraw()
            raise ArchiveError(f"{exc} Nothing was restored.") from exc
        except BaseException:
            self._withdraw()
            raise

    def _withdraw(self) -> None:
        for some in self._published_ids():
            upkeep.withdraw(self._bank.db, self._bank.blobs, some)

    def _touch(self) -> None:
        for some in self._published_ids():
            self._bank.blobs.touch(some)
        self._touched = time.monotonic()

    def _published_ids(self) -> Iterator[list[str]]:
        """All that were published, some at once."""
        yield self._unnoted
        yield from self._scratch.blob_ids()

    def _publish(
        self, read: Read, encode: Encode | None, progress: Callable[[float], None]
    ) -> None:
        total = max(1, self._scratch.counts()["memories"])
        for done, row in enumerate(self._scratch.rows(), 1):
            if not self._is_there(row):
                line = lines.read_memory(row.line, row.id)
                if encode is None:
                    self._publish_read(row, read)
                else:
                    self._publish_encoded(row, line, encode(line.memory(), line.old_chunks))
            progress(done / total)

    def _is_there(self, row: Row) -> bool:
        with self._bank.db.scope() as conn:
            return conn.execute(_BY_ID, {"memory_id": row.id}).first() is not None

    def _publish_read(self, row: Row, read: Read) -> None:
        spec, own = self._bank.spec, self._scratch.chunks(row.place)
        done: list[ChunkRow] = []
        for some in _batches(own, spec):
            kv = []
            for each in some:
                data = read(each.kv_at, each.tokens * spec.bytes_per_token)
                if tensors.check_of([memoryview(data)]) != each.kv_check:
                    raise fields.refused("the archive", "was changed while it was read")
                kv.append(tensors.kv_from(spec, each.tokens, data))
            done += self._published(some, kv)
        self._note(row.place, row.line, done)

    def _publish_encoded(self, row: Row, line: lines.Line, made: Sequence[NewChunk]) -> None:
        text, own = lines.recut(line, made)
        cut = [
            ChunkRow(
                ordinal,
                len(each.token_ids),
                np.asarray(each.token_ids, "<u4").tobytes(),
                None if each.vector is None else np.asarray(each.vector, "<f4").tobytes(),
            )
            for ordinal, each in enumerate(own)
        ]
        self._note(row.place, text, self._published(cut, [each.kv for each in own]))

    def _note(self, place: int, line: str, chunks: list[ChunkRow]) -> None:
        self._scratch.replace(place, line, chunks)
        self._unnoted.clear()

    def _published(self, parts: Sequence[ChunkRow], kv: Sequence[KVChunk]) -> list[ChunkRow]:
        if time.monotonic() - self._touched > _TOUCH_S:
            self._touch()
        refs = self._bank.blobs.publish(self._bank.spec, kv)
        self._unnoted += [ref.blob_id for ref in refs]
        return [replace(row, ref=ref) for row, ref in zip(parts, refs, strict=True)]

    def _write(self, conn: Connection) -> Counted:
        owners: dict[Owner, int] = {}
        had: dict[int, int] = {}
        present = written = 0
        for row in self._scratch.rows(by_rank=True):
            owner = self._owner(row.kind, row.name)
            if owner not in owners:
                owners[owner] = writes.owner_pk(conn, owner)
                had[owners[owner]] = limits.count(conn, owners[owner])
            pk, there = self._put_memory(conn, owners[owner], row)
            self._scratch.set_pk(row.place, pk, present=there)
            present, written = present + there, written + (not there)
        for owner_pk, whole in self._with_chunks(owners):
            insert_chunks(conn, self._bank.lexical, owner_pk, whole)
        self._put_superseded(conn)
        self._put_recalls(conn, owners)
        items = self._put_items(conn)
        if self._bank.max_memories is not None:
            for owner_pk, before in had.items():
                limits.check(conn, owner_pk, self._bank.max_memories, before)
        return Counted(written, present, items, tuple(owners))

    def _owner(self, kind: Any, name: str) -> Owner:
        return Owner(self._bank.tenant, kind, name)  # kind was checked when it was read

    def _put_memory(self, conn: Connection, owner: int, row: Row) -> tuple[int, bool]:
        """Key of the memory, and whether it was there."""
        line = lines.read_memory(row.line, row.id)
        found = conn.execute(_BY_ID, {"memory_id": row.id}).first()
        if found is not None:
            if found.owner_id != owner:
                raise _collides(row.id, "belongs to another owner in this bank")
            if not line.is_in(reads.stored_memories(conn, [found.pk])[0]):
                raise _collides(row.id, "has another content in this bank")
            return found.pk, True
        item = self._prepared(line, ())
        if writes.find(conn, owner, replace(item, memory=replace(item.memory, id=None))):
            raise _collides(row.id, "is in this bank already, under another id")
        return writes.insert_memory(conn, owner, item, self._bank.now), False

    def _with_chunks(
        self, owners: Mapping[Owner, int]
    ) -> Iterator[tuple[int, list[tuple[int, Prepared]]]]:
        """The new memories by key with their chunks, about 256 of one owner at once."""
        batch: list[tuple[int, Prepared]] = []
        last, size = 0, 0
        for row in self._scratch.rows():
            if row.present:
                continue
            owner = owners[self._owner(row.kind, row.name)]
            if batch and (owner != last or size >= _BATCH_ROWS):
                yield last, batch
                batch, size = [], 0
            batch.append(self._whole(row))
            last, size = owner, size + len(batch[-1][1].refs)
        if batch:
            yield last, batch

    def _whole(self, row: Row) -> tuple[int, Prepared]:
        """Key and content of a memory whose row is written."""
        parts = self._scratch.chunks(row.place)
        refs = [each.ref for each in parts if each.ref is not None]
        if len(refs) != len(parts) or row.pk is None:
            raise StoreLockedError(
                f"Memory {row.id} was forgotten while it was being restored. Restore again."
            )
        line = lines.read_memory(row.line, row.id)
        return row.pk, self._prepared(line, lines.new_chunks(line, parts, self._bank.spec), refs)

    def _prepared(
        self, line: lines.Line, chunks: Sequence[NewChunk], refs: Sequence[BlobRef] = ()
    ) -> Prepared:
        new = line.memory(chunks)
        digest = rows.text_digest(self._bank.db.cipher, self._bank.secret, new)
        return Prepared(new, refs, digest, line.values["created_at"])

    def _put_superseded(self, conn: Connection) -> None:
        for note in self._scratch.notes("superseded"):
            old, new = self._new(note.memory_id), self._scratch.row(note.other_id or "")
            if old is not None and new is not None:
                change = update(memories).where(memories.c.pk == old.pk)
                conn.execute(change.values(superseded_by=new.pk))

    def _put_recalls(self, conn: Connection, owners: Mapping[Owner, int]) -> None:
        for note in self._scratch.notes("recalls"):
            row = self._new(note.memory_id)
            if row is None:
                continue
            values = fields.record(fields.loads(note.line, "recalls"), fields.RECALL, "recalls")
            del values["memory_id"]
            values |= {"owner_id": owners[self._owner(row.kind, row.name)], "memory_pk": row.pk}
            values["chunk_pk"] = _chunk_pk(conn, row.pk, values.pop("chunk"))
            conn.execute(insert(recalls).values(values))

    def _put_items(self, conn: Connection) -> int:
        written = 0
        for note in self._scratch.notes("items"):
            values = fields.record(fields.loads(note.line, "items"), fields.ITEM, "items")
            row = self._scratch.row(note.memory_id) if note.memory_id else None
            owner = values["owner"]
            owner_pk = None if owner is None else writes.owner_pk(conn, self._owner(*owner))
            memory_pk = None if row is None else row.pk
            item = _item(values, note.vectors)
            written += put_back(conn, self._bank.tenant, item, owner_pk, memory_pk)
        return written

    def _new(self, memory_id: str | None) -> Row | None:
        """A memory that this restore has written; what was there before keeps what it has."""
        row = self._scratch.row(memory_id or "")
        return None if row is None or row.present else row


def _batches(parts: Sequence[ChunkRow], spec: KVSpec) -> list[list[ChunkRow]]:
    found: list[list[ChunkRow]] = []
    size = 0
    for row in parts:
        own = row.tokens * spec.bytes_per_token
        if not found or len(found[-1]) == _BATCH_FILES or size + own > _BATCH_BYTES:
            found.append([])
            size = 0
        found[-1].append(row)
        size += own
    return found


def _embedded(embed: Embed, line: str) -> bytes | None:
    made = embed(fields.loads(line, "items")["value"])
    return None if made is None else np.asarray(made, "<f4").tobytes()


def _chunk_pk(conn: Connection, memory_pk: int | None, ordinal: int | None) -> int | None:
    mine = (chunk_table.c.memory_pk == memory_pk) & (chunk_table.c.ordinal == ordinal)
    return None if ordinal is None else conn.scalar(select(chunk_table.c.pk).where(mine))


def _item(values: Mapping[str, Any], vectors: bytes | None) -> StoredItem:
    names = ("namespace", "key", "value", "created_at", "updated_at", "expires_at", "ttl_s")
    flat = None if vectors is None else np.frombuffer(vectors, "<f4")
    same = {name: values[name] for name in names}
    return StoredItem(pk=0, bound=None, vectors=flat, **same)


def _collides(memory_id: str, why: str) -> ArchiveError:
    return ArchiveError(
        f"Memory {memory_id} of this archive {why}. Nothing was restored. Delete it here, or "
        "restore into another bank."
    )
