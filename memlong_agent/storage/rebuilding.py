"""A bank whose K/V, or whose vectors, are made anew from its text, memory by memory.

In: what the bank holds, given out in batches. Out: the same memories with new chunks or vectors.
Ids, texts, times, sessions, metadata, counters and the recall log stay. A row of meta says what is
under way: while it is there, everybody else is refused, and whoever asks for the same goes on where
the last process stopped. Chunks get new keys, so those up to the highest key of the beginning are
what is left to do; vectors are counted by the keys they are done up to.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from sqlalchemy import Connection, delete, func, insert, select, update

from memlong_agent.errors import StoreLockedError
from memlong_agent.identity import Identity
from memlong_agent.kv import KVSpec
from memlong_agent.storage import guard, reads, seal, writes
from memlong_agent.storage.base import Matrix, NewChunk, NewMemory, StoredChunk, StoredMemory
from memlong_agent.storage.chunkrows import Prepared, insert_chunks, remove_chunks
from memlong_agent.storage.items.rows import StoredItem, query_items, row_name, stored_item
from memlong_agent.storage.kvfile import spec_to_json
from memlong_agent.storage.models import chunks, items, memories, meta, recalls, vectors
from memlong_agent.storage.sql import Storage

Kind = Literal["encoding", "vectors"]
_UNTIL_END = -1


@dataclass(frozen=True, slots=True)
class Job:
    """The row of meta."""

    kind: Kind
    target: dict[str, str]
    spec: str
    """Of the K/V of the target; empty for vectors."""
    upto: int
    """Highest chunk key at the beginning."""
    after: int = 0
    """Vectors of chunks up to this key are done."""
    items_after: int = _UNTIL_END
    """Vectors of items up to this key are done; -1 while chunks are not."""
    worker: str = ""
    """Whoever rebuilds now."""


@dataclass(frozen=True, slots=True, eq=False)
class Old:
    """One memory before it is encoded anew."""

    owner_pk: int
    memory: StoredMemory
    chunks: Sequence[StoredChunk]
    vectors: dict[int, Matrix]
    """By chunk key; a chunk may have none."""


class Rebuilding(Storage):
    """A bank under reconstruction: open it with :meth:`open`, then :meth:`begin` and, when no batch
    is left, :meth:`finish`.

    Every call may raise StoreLockedError when another process has taken the rebuild over.
    """

    _guarded = False
    _job: Job

    def begin(self, kind: Kind, target: Identity, spec: KVSpec | None = None) -> bool:
        """Take up the rebuild for `target`; returns whether one was interrupted and goes on.

        From here on nobody else may use the bank until :meth:`finish`.

        Raises:
            IncompatibleMemoryError: another kind of rebuild is not finished.
        """
        text = "" if spec is None else spec_to_json(spec)
        with self._db.scope(write=True) as conn:
            guard.check_seal(self._db, conn)
            guard.check_whole(self._db, conn, but=kind)
            before = _job(conn)
            resumed = before is not None and (before.target, before.spec) == (target.parts, text)
            if before is None or not resumed:
                before = Job(kind, dict(target.parts), text, self._highest(conn))
                if kind == "vectors":
                    conn.execute(delete(vectors))
            self._job = replace(before, worker=secrets.token_hex(8))
            self._save(conn)
            writes.new_epoch(conn)
        self._known_spec = spec
        return resumed

    def left(self) -> tuple[int, int]:
        """Memories that are not done yet, and all memories."""
        with self._db.scope() as conn:
            total = conn.scalar(select(func.count()).select_from(memories)) or 0
            left = conn.scalar(select(func.count()).select_from(self._undone().subquery())) or 0
            return left, total

    def memories(self, limit: int = 64) -> list[Old]:
        """The next memories to encode anew, with about `limit` chunks together; none at the end."""
        with self._db.scope() as conn:
            rows = select(chunks.c.memory_pk, chunks.c.owner_id).where(self._is_left())
            owner_of = dict(map(tuple, conn.execute(rows.order_by(chunks.c.pk).limit(limit))))
            found = reads.stored_memories(conn, list(owner_of))
            return [self._old(conn, owner_of[each.pk], each) for each in found]

    def encode(self, done: Sequence[tuple[Old, Sequence[NewChunk]]]) -> None:
        """Give memories new chunks, all or none. A chunk's counter is its own to keep."""
        new = [
            NewMemory(role=old.memory.role, text=old.memory.text, chunks=made, id=old.memory.id)
            for old, made in done
        ]
        with self._writing(new) as (conn, prepared):
            self._check_mine(conn)
            unused: list[str] = []
            for (old, _), item in zip(done, prepared, strict=True):
                unused += self._replaced(conn, old, item)
        self._drop_replaced(unused)

    def chunks_without_vectors(self, limit: int = 256) -> list[StoredChunk]:
        """The next chunks to embed anew, by key; none at the end."""
        with self._db.scope() as conn:
            rows = select(chunks.c.pk, chunks.c.owner_id).where(chunks.c.pk > self._job.after)
            next_ones = conn.execute(rows.order_by(chunks.c.pk).limit(limit)).all()
            owned: dict[int, list[int]] = {}
            for pk, owner_pk in next_ones:
                owned.setdefault(owner_pk, []).append(pk)
            each = (reads.stored_chunks(conn, owner, pks) for owner, pks in owned.items())
            found = [chunk for some in each for chunk in some]
            return sorted(found, key=lambda chunk: chunk.pk)

    def embed(self, done: Sequence[tuple[int, Matrix | None]]) -> None:
        """Vectors (E,) of chunks by key, all or none; None for a chunk that has no direction."""
        with self._db.scope(write=True) as conn:
            self._check_mine(conn)
            cipher = seal.of(conn)
            rows = [
                {"chunk_pk": pk, "vector": cipher.seal(_bytes(vector), "vectors.vector", pk)}
                for pk, vector in done
                if vector is not None
            ]
            if rows:
                conn.execute(insert(vectors), rows)
            self._job = replace(self._job, after=max(pk for pk, _ in done))
            self._save(conn)

    def items_with_vectors(self, limit: int = 64) -> list[StoredItem]:
        """The next items that were found by their meaning; none at the end."""
        query = query_items(vectors=True).where(
            items.c.vectors.is_not(None), items.c.pk > self._job.items_after
        )
        with self._db.scope() as conn:
            rows = conn.execute(query.order_by(items.c.pk).limit(limit))
            return [stored_item(seal.of(conn), row) for row in rows]

    def embed_items(self, done: Sequence[tuple[StoredItem, Matrix | None]]) -> None:
        """Vectors (n, E) of items, all or none; with None an item is found by time only."""
        with self._db.scope(write=True) as conn:
            self._check_mine(conn)
            cipher = seal.of(conn)
            for item, matrix in done:
                this = items.c.pk == item.pk
                key = select(items.c.tenant, items.c.namespace, items.c.key).where(this)
                place = row_name(*conn.execute(key).one())
                blob = None
                if matrix is not None:
                    blob = cipher.seal(_bytes(matrix), "items.vectors", place)
                conn.execute(update(items).where(this).values(vectors=blob))
            self._job = replace(self._job, items_after=max(item.pk for item, _ in done))
            self._save(conn)

    def finish(self) -> None:
        """The bank is the target's from here on, and open to all who have it."""
        with self._db.scope(write=True) as conn:
            self._check_mine(conn)
            target = Identity(self._job.target).to_json()
            if self._job.kind == "encoding":
                writes.set_meta(conn, "encoding", target)
                writes.set_meta(conn, "kv_spec", self._job.spec)
            else:
                writes.set_meta(conn, "retrieval", target)
            conn.execute(delete(meta).where(meta.c.key == guard.REBUILD))
            writes.new_epoch(conn)

    def _old(self, conn: Connection, owner_pk: int, memory: StoredMemory) -> Old:
        found = reads.stored_chunks(conn, owner_pk, memory.chunk_pks)
        pks, matrix = reads.vectors_of(conn, owner_pk, memory.chunk_pks)
        return Old(owner_pk, memory, found, dict(zip(pks.tolist(), matrix, strict=True)))

    def _replaced(self, conn: Connection, old: Old, item: Prepared) -> list[str]:
        """New chunks in place of the old ones; returns the K/V files that are not needed now."""
        logged = select(recalls.c.pk, chunks.c.ordinal).join(
            chunks, chunks.c.pk == recalls.c.chunk_pk
        )
        pk = old.memory.pk
        log = conn.execute(logged.where(chunks.c.memory_pk == pk)).all()
        unused = remove_chunks(conn, self._lexical, old.owner_pk, old.memory.chunk_pks)
        insert_chunks(conn, self._lexical, old.owner_pk, [(pk, item)])
        made = select(chunks.c.ordinal, chunks.c.pk).where(chunks.c.memory_pk == pk)
        by_ordinal = dict(map(tuple, conn.execute(made)))
        for recall_pk, ordinal in log:
            if ordinal in by_ordinal:
                change = update(recalls).where(recalls.c.pk == recall_pk)
                conn.execute(change.values(chunk_pk=by_ordinal[ordinal], memory_pk=pk))
        return unused

    def _is_left(self) -> Any:
        return chunks.c.pk <= self._job.upto

    def _undone(self) -> Any:
        done_up_to = self._job.after if self._job.kind == "vectors" else 0
        left = (chunks.c.pk > done_up_to) & self._is_left()
        return select(chunks.c.memory_pk).where(left).distinct()

    def _highest(self, conn: Connection) -> int:
        return conn.scalar(select(func.max(chunks.c.pk))) or 0

    def _save(self, conn: Connection) -> None:
        writes.set_meta(conn, guard.REBUILD, json.dumps(asdict(self._job)))

    def _check_mine(self, conn: Connection) -> None:
        guard.check_seal(self._db, conn)
        running = _job(conn)
        if running is None or running.worker != self._job.worker:
            raise StoreLockedError(
                f"Another process has taken over the rebuild of {self._db.place}. Wait for it."
            )


def _job(conn: Connection) -> Job | None:
    text = reads.meta_value(conn, guard.REBUILD)
    return None if text is None else Job(**json.loads(text))


def _bytes(vectors: Matrix) -> bytes:
    return np.asarray(vectors, "<f4").tobytes()
