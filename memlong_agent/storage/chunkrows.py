"""Chunks in and out of a bank's rows. The caller owns the write transaction and the files.

Everything that adds a chunk or removes one does so in :func:`insert_chunks` and
:func:`remove_chunks`, which keep word index, outbox and the owner's counts in step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from sqlalchemy import BindParameter, Connection, bindparam, delete, func, insert, select, update

from memlong_agent.errors import ConfigError
from memlong_agent.storage import rows, seal
from memlong_agent.storage.base import NewChunk, NewMemory
from memlong_agent.storage.batching import batches
from memlong_agent.storage.kvfile import BlobRef
from memlong_agent.storage.lexical import Lexical
from memlong_agent.storage.models import blobs, chunks, events, memories, owners, vectors

# Built once: writing a memory runs them all, and building one takes as long as running it.
_SOME: BindParameter[int] = bindparam("memories", expanding=True)
_MEMORY_IDS = select(memories.c.pk, memories.c.id).where(memories.c.pk.in_(_SOME))
_CHUNK_PKS = select(chunks.c.pk, chunks.c.memory_pk, chunks.c.ordinal).where(
    chunks.c.memory_pk.in_(_SOME)
)
_VECTOR_BYTES = select(func.length(vectors.c.vector)).limit(1)
_COUNT = (
    update(owners)
    .where(owners.c.pk == bindparam("owner"))
    .values(
        chunks=owners.c.chunks + bindparam("more_chunks"),
        tokens=owners.c.tokens + bindparam("more_tokens"),
    )
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked memory whose K/V files are published."""

    memory: NewMemory
    refs: Sequence[BlobRef]
    digest: str
    created_at: datetime

    @property
    def blob_ids(self) -> list[str]:
        return [ref.blob_id for ref in self.refs]


def insert_chunks(
    conn: Connection, lexical: Lexical, owner: int, items: Sequence[tuple[int, Prepared]]
) -> None:
    """Chunks of an owner's memories, given by key, with their files, words, vectors and events."""
    if not items:
        return
    cipher, ids = seal.of(conn), memory_ids(conn, [pk for pk, _ in items])
    parts = [
        (pk, at if new.ordinal is None else new.ordinal, new, ref)
        for pk, item in items
        for at, (new, ref) in enumerate(zip(item.memory.chunks, item.refs, strict=True))
    ]
    places = [rows.chunk_place(ids[memory], at) for memory, at, _, _ in parts]
    values = [
        {
            "memory_pk": memory,
            "owner_id": owner,
            "ordinal": at,
            "counter": new.counter,
            "last_recalled_at": new.last_recalled_at,
            **rows.chunk_values(cipher, place, new),
        }
        for (memory, at, new, _), place in zip(parts, places, strict=True)
    ]
    conn.execute(insert(chunks), values)
    keys = _chunk_pks(conn, list(ids))
    pks = [keys[memory, at] for memory, at, _, _ in parts]
    files = [
        {
            "chunk_pk": pk,
            "blob_id": ref.blob_id,
            "nbytes": ref.nbytes,
            "checksum": cipher.seal_text(ref.checksum, "blobs.checksum", place),
        }
        for pk, place, (_, _, _, ref) in zip(pks, places, parts, strict=True)
    ]
    conn.execute(insert(blobs), files)
    made = [(pk, new) for pk, (_, _, new, _) in zip(pks, parts, strict=True)]
    lexical.add(conn, owner, [(pk, new.text) for pk, new in made])
    _insert_vectors(conn, made)
    _record(conn, owner, pks, "add", sum(ref.tokens for _, _, _, ref in parts))


def memory_ids(conn: Connection, pks: Sequence[int]) -> dict[int, str]:
    """By key, in the order of the keys given."""
    found: dict[int, str] = {}
    for batch in batches(pks):
        found |= {row.pk: row.id for row in conn.execute(_MEMORY_IDS, {"memories": batch})}
    return {pk: found[pk] for pk in pks}


def _chunk_pks(conn: Connection, memory_pks: Sequence[int]) -> dict[tuple[int, int], int]:
    """Keys of the memories' chunks by memory and ordinal."""
    found: dict[tuple[int, int], int] = {}
    for batch in batches(memory_pks):
        for row in conn.execute(_CHUNK_PKS, {"memories": batch}):
            found[row.memory_pk, row.ordinal] = row.pk
    return found


def remove_chunks(conn: Connection, lexical: Lexical, owner: int, pks: Sequence[int]) -> list[str]:
    """Delete an owner's chunks, vectors and words; returns their K/V files."""
    unused: list[str] = []
    for batch in batches(pks):
        mine = (chunks.c.owner_id == owner) & chunks.c.pk.in_(batch)
        rows = conn.execute(select(chunks.c.pk, chunks.c.tokens).where(mine)).all()
        if not rows:
            continue
        found = [row.pk for row in rows]
        unused += conn.scalars(select(blobs.c.blob_id).where(blobs.c.chunk_pk.in_(found)))
        lexical.remove(conn, found)
        conn.execute(delete(chunks).where(chunks.c.pk.in_(found)))
        _record(conn, owner, found, "delete", -sum(row.tokens for row in rows))
    return unused


def _insert_vectors(conn: Connection, made: Sequence[tuple[int, NewChunk]]) -> None:
    cipher = seal.of(conn)
    new = [(pk, np.asarray(c.vector, "<f4").tobytes()) for pk, c in made if c.vector is not None]
    if not new:
        return
    length = conn.scalar(_VECTOR_BYTES)
    first = len(new[0][1]) if length is None else length - cipher.overhead
    wrong = {len(vector) for _, vector in new} - {first}
    if wrong:
        raise ConfigError(
            f"This bank holds vectors of length {first // 4}; got {wrong.pop() // 4}. Use the "
            "embedder that wrote it, or make all vectors anew: memlong rebuild --vectors."
        )
    sealed = [{"chunk_pk": pk, "vector": cipher.seal(v, "vectors.vector", pk)} for pk, v in new]
    conn.execute(insert(vectors), sealed)


def _record(conn: Connection, owner: int, pks: Sequence[int], op: str, tokens: int) -> None:
    """Outbox and the owner's counts; `tokens` is signed."""
    number = len(pks) if op == "add" else -len(pks)
    conn.execute(insert(events), [{"owner_id": owner, "chunk_pk": pk, "op": op} for pk in pks])
    conn.execute(_COUNT, {"owner": owner, "more_chunks": number, "more_tokens": tokens})
