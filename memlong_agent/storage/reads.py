"""Statements that only read: rows in, frozen records out. The caller owns the transaction.

Everything that recall uses goes through `_MAY_BE_RECALLED`: not expired, not superseded,
recallable, and pending only for the turn that wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import Connection, Select, and_, bindparam, func, or_, select

from memlong_agent.errors import MemoryNotFoundError
from memlong_agent.storage import rows, seal
from memlong_agent.storage.base import (
    ChunkAge,
    Event,
    Matrix,
    Owner,
    OwnerStats,
    Pks,
    StoredChunk,
    StoredMemory,
)
from memlong_agent.storage.batching import batches
from memlong_agent.storage.kvfile import BlobRef
from memlong_agent.storage.models import (
    Utc,
    Utf8,
    blobs,
    chunks,
    events,
    memories,
    meta,
    owners,
    sessions,
    vectors,
)

ERASED = "erased"  # kind of the row that stands for all who were erased
# A condition on a memory's row: recall may use it at :now, in the turn :turn.
_MAY_BE_RECALLED = and_(
    memories.c.recallable,
    or_(memories.c.pending.is_(None), memories.c.pending == bindparam("turn", type_=Utf8)),
    or_(memories.c.expires_at.is_(None), memories.c.expires_at > bindparam("now", type_=Utc)),
    memories.c.superseded_by.is_(None),
)


def meta_value(conn: Connection, key: str) -> str | None:
    return conn.scalar(select(meta.c.value).where(meta.c.key == key))


def owner_row(conn: Connection, owner: Owner) -> tuple[int, int, int]:
    """(pk, chunks, tokens) of an owner; pk 0, which no row has, for one who never wrote."""
    parameters = {"tenant": owner.tenant, "kind": owner.kind, "name": owner.name}
    row = conn.execute(_OWNER, parameters).first()
    return (row.pk, row.chunks, row.tokens) if row else (0, 0, 0)


def memory_pks(
    conn: Connection,
    owner_pk: int,
    *,
    session: str | None = None,
    role: str | None = None,
    include_pending: bool = True,
    newest_first: bool = True,
    limit: int | None = None,
    by_time: bool = True,
) -> list[int]:
    """Keys of an owner's memories by (created_at, pk), or as they were first written."""
    query = select(memories.c.pk).limit(limit)
    if session is None:
        query = query.where(memories.c.owner_id == owner_pk)
    else:  # by the session's index alone: an owner may have a hundred sessions
        mine = (sessions.c.owner_id == owner_pk) & (sessions.c.external_id == session)
        found = select(sessions.c.pk).where(mine).scalar_subquery()
        query = query.where(memories.c.session_id == found)
    if role is not None:
        query = query.where(memories.c.role == role)
    if not include_pending:
        query = query.where(memories.c.pending.is_(None))
    keys = (memories.c.created_at, memories.c.pk) if by_time else (memories.c.pk,)
    order = [key.desc() for key in keys] if newest_first else list(keys)
    return list(conn.scalars(query.order_by(*order)))


def pending_pks(conn: Connection, owner_pk: int, turn: str) -> list[int]:
    mine = (memories.c.owner_id == owner_pk) & (memories.c.pending == turn)
    return list(conn.scalars(select(memories.c.pk).where(mine)))


def memory_pk(conn: Connection, owner_pk: int, memory_id: str) -> int:
    """Key of one memory; MemoryNotFoundError if this owner has none with the id."""
    query = select(memories.c.pk).where(memories.c.owner_id == owner_pk, memories.c.id == memory_id)
    pk = conn.scalar(query)
    if pk is None:
        raise MemoryNotFoundError(
            f"There is no memory {memory_id!r} here. List this owner's memories to see their ids."
        )
    return int(pk)


def stored_memories(conn: Connection, pks: Sequence[int]) -> list[StoredMemory]:
    """Records in the order of `pks`; keys without a row are left out."""
    newer = memories.alias("newer")
    query = (
        select(memories, sessions.c.external_id.label("session"), newer.c.id.label("newer_id"))
        .outerjoin(sessions, sessions.c.pk == memories.c.session_id)
        .outerjoin(newer, newer.c.pk == memories.c.superseded_by)
    )
    found: dict[int, StoredMemory] = {}
    for batch in batches(pks):
        owned: dict[int, list[tuple[int, int]]] = {}
        parts = select(chunks.c.memory_pk, chunks.c.pk, chunks.c.tokens)
        parts = parts.where(chunks.c.memory_pk.in_(batch))
        for row in conn.execute(parts.order_by(chunks.c.memory_pk, chunks.c.ordinal)):
            owned.setdefault(row.memory_pk, []).append((row.pk, row.tokens))
        for row in conn.execute(query.where(memories.c.pk.in_(batch))):
            found[row.pk] = rows.memory(seal.of(conn), row, owned.get(row.pk, []))
    return [found[pk] for pk in pks if pk in found]


def stored_chunks(conn: Connection, owner_pk: int, pks: Sequence[int]) -> list[StoredChunk]:
    """An owner's chunks in the order of `pks`, whatever their state; others are left out."""
    return _chunks(conn, _CHUNKS, pks, {"owner": owner_pk})


def recallable_chunks(
    conn: Connection, owner_pk: int, pks: Sequence[int], *, now: datetime, turn: str | None
) -> list[StoredChunk]:
    """Those of :func:`stored_chunks` that recall may use now, in this turn."""
    parameters = {"owner": owner_pk, "now": now, "turn": turn}
    return _chunks(conn, _RECALLABLE_CHUNKS, pks, parameters)


def recallable_pks(
    conn: Connection, owner_pk: int, *, now: datetime, turn: str | None, session: str | None
) -> list[int]:
    """Keys of all an owner's chunks that recall may use now, in this turn, ascending."""
    query = select(chunks.c.pk).join(memories, memories.c.pk == chunks.c.memory_pk)
    query = query.where(chunks.c.owner_id == owner_pk, _MAY_BE_RECALLED)
    if session is not None:
        query = query.join(sessions, sessions.c.pk == memories.c.session_id)
        query = query.where(sessions.c.external_id == session)
    return list(conn.scalars(query.order_by(chunks.c.pk), {"now": now, "turn": turn}))


def chunk_ages(conn: Connection, owner_pk: int) -> list[ChunkAge]:
    query = (
        select(
            chunks.c.pk,
            chunks.c.tokens,
            chunks.c.counter,
            memories.c.created_at,
            chunks.c.last_recalled_at,
            memories.c.pending,
        )
        .join(memories, memories.c.pk == chunks.c.memory_pk)
        .where(chunks.c.owner_id == owner_pk)
        .order_by(memories.c.created_at, chunks.c.pk)
    )
    return [ChunkAge(*row) for row in conn.execute(query)]


def vector_rows(
    conn: Connection, owner_pk: int, *, pks: Sequence[int] | None, after_pk: int, limit: int
) -> tuple[Pks, Matrix]:
    """Vectors of `pks`, or all with key > `after_pk`; ascending, at most `limit`."""
    # With both conditions SQLite scans the owner's whole index: 6.3, not 2.9 ms at 1e5 chunks.
    query = _VECTORS_AFTER if pks is None else _VECTORS_OF
    among: dict[str, Any] = {"after": after_pk} if pks is None else {"pks": pks}
    held = conn.execute(query, {"owner": owner_pk, "limit": limit, **among}).all()
    found = np.array([row.pk for row in held], np.int64)
    cipher = seal.of(conn)
    parts = [cipher.open(row.vector, "vectors.vector", row.pk) for row in held]
    flat = np.frombuffer(b"".join(parts), "<f4").astype(np.float32)
    return found, flat.reshape(len(held), -1) if held else flat.reshape(0, 0)


def vectors_of(conn: Connection, owner_pk: int, pks: Sequence[int]) -> tuple[Pks, Matrix]:
    """Vectors of `pks`, however many; ascending."""
    parts = [
        vector_rows(conn, owner_pk, pks=some, after_pk=0, limit=len(some))
        for some in batches(sorted(set(pks)))
    ]
    full = [part for part in parts if len(part[0])]
    if not full:
        return np.empty(0, np.int64), np.empty((0, 0), np.float32)
    return np.concatenate([p for p, _ in full]), np.concatenate([m for _, m in full])


def blob_refs(conn: Connection, pks: Sequence[int]) -> dict[int, BlobRef]:
    """The files of chunks, by chunk key."""
    found: dict[int, BlobRef] = {}
    cipher = seal.of(conn)
    for batch in batches(pks):
        for row in conn.execute(_BLOBS, {"pks": batch}):
            found[row.chunk_pk] = rows.blob_ref(cipher, row)
    return found


def held_texts(conn: Connection, pks: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Id, and the text of the chunks that are left, of those memories of `pks` that have any."""
    query = select(chunks.c.memory_pk, chunks.c.ordinal, chunks.c.text, memories.c.id)
    query = query.join(memories, memories.c.pk == chunks.c.memory_pk)
    query = query.where(chunks.c.memory_pk.in_(pks))
    cipher, found = seal.of(conn), dict[int, tuple[str, str]]()
    for row in conn.execute(query.order_by(chunks.c.memory_pk, chunks.c.ordinal)):
        text = cipher.open_text(row.text, "chunks.text", rows.chunk_place(row.id, row.ordinal))
        found[row.memory_pk] = row.id, found.get(row.memory_pk, ("", ""))[1] + text
    return found


def known_blobs(conn: Connection, blob_ids: Sequence[str]) -> set[str]:
    """Those of `blob_ids` that have a row."""
    found: set[str] = set()
    for some in batches(blob_ids):
        found |= set(conn.scalars(select(blobs.c.blob_id).where(blobs.c.blob_id.in_(some))))
    return found


def events_after(conn: Connection, owner_pk: int, seq: int) -> list[Event]:
    return [Event(*row) for row in conn.execute(_EVENTS, {"owner": owner_pk, "seq": seq})]


def last_event(conn: Connection, owner_pk: int) -> int:
    query = select(func.max(events.c.seq)).where(events.c.owner_id == owner_pk)
    return conn.scalar(query) or 0


def stats(conn: Connection, owner: Owner | None) -> dict[Owner, OwnerStats]:
    """Counts by owner; owners without memories are there with zeros."""
    count = select(func.count()).where(memories.c.owner_id == owners.c.pk).scalar_subquery()
    size = (
        select(func.coalesce(func.sum(blobs.c.nbytes), 0))
        .join(chunks, chunks.c.pk == blobs.c.chunk_pk)
        .where(chunks.c.owner_id == owners.c.pk)
        .scalar_subquery()
    )
    query = select(owners, count.label("memories"), size.label("nbytes")).order_by(owners.c.pk)
    query = query.where(owners.c.kind != ERASED)
    if owner is not None:
        query = query.where(
            owners.c.tenant == owner.tenant,
            owners.c.kind == owner.kind,
            owners.c.name == owner.name,
        )
    return {
        Owner(row.tenant, row.kind, row.name): OwnerStats(
            row.memories,
            row.chunks,
            row.tokens,
            int(row.nbytes),  # PostgreSQL's sums are Decimal
        )
        for row in conn.execute(query)
    }


def _chunk_query() -> Select[Any]:
    return (
        select(
            chunks,
            memories.c.id.label("memory_id"),
            memories.c.created_at,
            memories.c.source,
            memories.c.role,
            memories.c.recallable,
            memories.c.pending,
            memories.c.expires_at,
            sessions.c.external_id.label("session"),
        )
        .join(memories, memories.c.pk == chunks.c.memory_pk)
        .outerjoin(sessions, sessions.c.pk == memories.c.session_id)
        .where(
            chunks.c.owner_id == bindparam("owner"),
            chunks.c.pk.in_(bindparam("pks", expanding=True)),
        )
    )


# Built once: every turn runs them, and building one takes as long as running it.
_OWNER = select(owners.c.pk, owners.c.chunks, owners.c.tokens).where(
    owners.c.tenant == bindparam("tenant"),
    owners.c.kind == bindparam("kind"),
    owners.c.name == bindparam("name"),
)
_EVENTS = (
    select(events.c.seq, events.c.chunk_pk, events.c.op)
    .where(events.c.owner_id == bindparam("owner"), events.c.seq > bindparam("seq"))
    .order_by(events.c.seq)
)
_VECTORS = (
    select(chunks.c.pk, vectors.c.vector)
    .join(vectors, vectors.c.chunk_pk == chunks.c.pk)
    .where(chunks.c.owner_id == bindparam("owner"))
    .order_by(chunks.c.pk)
    .limit(bindparam("limit"))
)
_VECTORS_AFTER = _VECTORS.where(chunks.c.pk > bindparam("after"))
_VECTORS_OF = _VECTORS.where(chunks.c.pk.in_(bindparam("pks", expanding=True)))
_BLOBS = (
    select(
        blobs.c.chunk_pk,
        blobs.c.blob_id,
        chunks.c.tokens,
        blobs.c.nbytes,
        blobs.c.checksum,
        memories.c.id.label("memory_id"),
        chunks.c.ordinal,
    )
    .join(chunks, chunks.c.pk == blobs.c.chunk_pk)
    .join(memories, memories.c.pk == chunks.c.memory_pk)
    .where(blobs.c.chunk_pk.in_(bindparam("pks", expanding=True)))
)
_CHUNKS = _chunk_query()
_RECALLABLE_CHUNKS = _CHUNKS.where(_MAY_BE_RECALLED)


def _chunks(
    conn: Connection, query: Select[Any], pks: Sequence[int], parameters: Mapping[str, Any]
) -> list[StoredChunk]:
    found: dict[int, StoredChunk] = {}
    for batch in batches(pks):
        for row in conn.execute(query, {**parameters, "pks": batch}):
            found[row.pk] = rows.chunk(seal.of(conn), row)
    return [found[pk] for pk in pks if pk in found]
