"""Statements that change rows. The caller owns the write transaction and the files.

Everything that adds a chunk or removes one does so in :func:`insert_chunks` and
:func:`remove_chunks`, which keep word index, outbox and the owner's counts in step.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import (
    Connection,
    Table,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from memlong_agent.errors import ConfigError
from memlong_agent.storage import reads, rows, seal, superseding
from memlong_agent.storage.base import NewChunk, NewMemory, Owner, RecallMark
from memlong_agent.storage.dialects import ifnull, upsert
from memlong_agent.storage.kvfile import BlobRef
from memlong_agent.storage.lexical import Lexical
from memlong_agent.storage.models import (
    blobs,
    chunks,
    events,
    memories,
    meta,
    owners,
    recalls,
    sessions,
    vectors,
)

EPOCH = "epoch"
"""Row of meta by which everybody who has the bank open sees that it may be another's now."""
# Built once: writing a memory runs them all, and building one takes as long as running it.
_MEMORY_ID = select(memories.c.id).where(memories.c.pk == bindparam("memory"))
_VECTOR_BYTES = select(func.length(vectors.c.vector)).limit(1)
_COUNT = (
    update(owners)
    .where(owners.c.pk == bindparam("owner"))
    .values(
        chunks=owners.c.chunks + bindparam("more_chunks"),
        tokens=owners.c.tokens + bindparam("more_tokens"),
    )
)
_AMENDED = ("role", "text", "messages", "metadata", "text_digest", "created_at", "turn")


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


def set_meta(conn: Connection, key: str, value: str) -> None:
    conn.execute(upsert(conn, meta, {"key": key, "value": value}, {"value": value}))


def new_epoch(conn: Connection) -> None:
    """Make everybody who has the bank open look whether it is still theirs."""
    set_meta(conn, EPOCH, secrets.token_hex(8))


def owner_pk(conn: Connection, owner: Owner) -> int:
    """Key of an owner, made if need be."""
    row = {"tenant": owner.tenant, "kind": owner.kind, "name": owner.name}
    conn.execute(upsert(conn, owners, row))
    return reads.owner_row(conn, owner)[0]


def put(conn: Connection, lexical: Lexical, owner: int, item: Prepared, now: datetime) -> PutResult:
    """Insert a memory, or return or replace the one that has its unique key."""
    found = find(conn, owner, item)
    if found is None:
        pk = insert_memory(conn, owner, item, now)
        insert_chunks(conn, lexical, owner, pk, item)
        return PutResult(pk, [])
    expired = found.expires_at is not None and found.expires_at <= now
    hidden = found.superseded_by is not None or found.recallable != item.memory.recallable
    same = hmac.compare_digest(found.text_digest, item.digest)
    if same and not expired and not hidden:
        return PutResult(found.pk, item.blob_ids)
    return PutResult(found.pk, rewrite(conn, lexical, owner, found.pk, item, now))


@dataclass(frozen=True, slots=True)
class PutResult:
    """Key of the memory, and ids of the K/V files that no row needs once this commits."""

    pk: int
    unused: list[str]


def insert_memory(conn: Connection, owner: int, item: Prepared, now: datetime) -> int:
    """The row of a new memory, without its chunks; returns its key."""
    session = _session_pk(conn, owner, item.memory.session)
    memory_id = item.memory.id or secrets.token_hex(16)
    values = rows.memory_values(seal.of(conn), memory_id, _values(item, session, now))
    return _insert(conn, memories, {"id": memory_id, "owner_id": owner, **values})


def rewrite(
    conn: Connection, lexical: Lexical, owner: int, pk: int, item: Prepared, now: datetime
) -> list[str]:
    """Give a memory new content under its old id; returns the K/V files it no longer needs."""
    session = _session_pk(conn, owner, item.memory.session)
    old = list(conn.scalars(select(chunks.c.pk).where(chunks.c.memory_pk == pk)))
    unused = remove_chunks(conn, lexical, owner, old)
    values = rows.memory_values(seal.of(conn), _memory_id(conn, pk), _values(item, session, now))
    values["superseded_by"] = None
    conn.execute(update(memories).where(memories.c.pk == pk).values(values))
    insert_chunks(conn, lexical, owner, pk, item)
    return unused


def amend(conn: Connection, lexical: Lexical, owner: int, pk: int, item: Prepared) -> list[str]:
    """As :func:`rewrite`, but what a memory is known by stays; no turn has written it."""
    old = list(conn.scalars(select(chunks.c.pk).where(chunks.c.memory_pk == pk)))
    unused = remove_chunks(conn, lexical, owner, old)
    values = {**_values(item, None, item.created_at), "turn": None}
    kept = {name: values[name] for name in _AMENDED}
    kept = rows.memory_values(seal.of(conn), _memory_id(conn, pk), kept)
    conn.execute(update(memories).where(memories.c.pk == pk).values(kept))
    insert_chunks(conn, lexical, owner, pk, item)
    return unused


def remove_memories(
    conn: Connection, lexical: Lexical, owner: int, pks: Sequence[int]
) -> list[str]:
    """Delete memories with all that hangs on them; returns their K/V files."""
    unused: list[str] = []
    for batch in reads.batches(pks):
        owned = list(conn.scalars(select(chunks.c.pk).where(chunks.c.memory_pk.in_(batch))))
        unused += remove_chunks(conn, lexical, owner, owned)
        conn.execute(delete(memories).where(memories.c.pk.in_(batch)))
    return unused


def remove_chunks(conn: Connection, lexical: Lexical, owner: int, pks: Sequence[int]) -> list[str]:
    """Delete an owner's chunks, vectors and words; returns their K/V files."""
    unused: list[str] = []
    for batch in reads.batches(pks):
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


def trim(conn: Connection, pks: Sequence[int]) -> None:
    """Delete those memories of `pks` that have no chunk left; the others say what they still hold.

    The digest stays: a document of which parts were evicted is not written again.
    """
    empty = ~exists().where(chunks.c.memory_pk == memories.c.pk)
    for batch in reads.batches(pks):
        gone = list(conn.scalars(select(memories.c.pk).where(memories.c.pk.in_(batch), empty)))
        superseding.release(conn, gone, undo=False)
        conn.execute(delete(memories).where(memories.c.pk.in_(gone)))
        for pk, (memory_id, text) in reads.held_texts(conn, batch).items():
            values = rows.memory_values(seal.of(conn), memory_id, {"text": text, "messages": None})
            conn.execute(update(memories).where(memories.c.pk == pk).values(values))


def record_recalls(
    conn: Connection, owner: int, turn: str, marks: Sequence[RecallMark], now: datetime
) -> None:
    """One row for each chunk and turn, the last call wins; the counter rises with the first."""
    lasting = select(chunks.c.memory_pk).join(memories, memories.c.pk == chunks.c.memory_pk)
    lasting = lasting.where(chunks.c.owner_id == owner, memories.c.pending.is_(None))
    for mark in marks:
        memory_pk = conn.scalar(lasting.where(chunks.c.pk == mark.pk))
        if memory_pk is None:
            continue  # forgotten or evicted since it was recalled, or gone with its turn
        key = {"owner_id": owner, "turn": turn, "chunk_pk": mark.pk}
        values = {"rank": mark.rank, "score": mark.score, "attention_mass": mark.attention_mass}
        this = [recalls.c[name] == value for name, value in key.items()]
        again = conn.execute(update(recalls).where(*this).values(**values, at=now)).rowcount
        if not again:
            values["memory_pk"] = memory_pk
            conn.execute(insert(recalls).values(**key, **values, at=now))
        changes = {"counter": chunks.c.counter + (0 if again else 1), "last_recalled_at": now}
        conn.execute(update(chunks).where(chunks.c.pk == mark.pk).values(changes))


def _session_pk(conn: Connection, owner: int, session: str | None) -> int | None:
    if session is None:
        return None
    key = {"owner_id": owner, "external_id": session}
    conn.execute(upsert(conn, sessions, key))
    query = select(sessions.c.pk).where(
        sessions.c.owner_id == owner, sessions.c.external_id == session
    )
    return conn.scalar(query)


def _values(item: Prepared, session: int | None, now: datetime) -> dict[str, Any]:
    new = item.memory
    return {
        "session_id": session,
        "role": new.role,
        "text": new.text,
        "messages": None if new.messages is None else [dict(each) for each in new.messages],
        "source": new.source,
        "ordinal": new.ordinal,
        "metadata": dict(new.metadata),
        "message_id": new.message_id,
        "text_digest": item.digest,
        "created_at": item.created_at,
        "expires_at": new.expires_at,
        "recallable": new.recallable,
        "pending": new.pending,
        "pending_at": None if new.pending is None else now,
        "turn": new.turn,
    }


def find(conn: Connection, owner: int, item: Prepared) -> Any:
    """The memory that has the unique key of a new one: its id, or message, or section; or None."""
    new = item.memory
    if new.id is None and new.message_id is None and new.role != "document":
        return None
    session = _session_pk(conn, owner, new.session)
    compared = ("pk", "text_digest", "expires_at", "superseded_by", "recallable")
    query = select(*(memories.c[name] for name in compared)).where(memories.c.owner_id == owner)
    if new.id is not None:
        query = query.where(memories.c.id == new.id)
    elif new.message_id is not None:
        # As in the unique index: NULLs are all different to SQL, and no session is one session.
        same_session = ifnull(memories.c.session_id, 0) == (session or 0)
        query = query.where(same_session, memories.c.message_id == new.message_id)
    else:
        if not seal.of(conn).sealed:  # else it is in the digest
            query = query.where(ifnull(memories.c.source, "") == (new.source or ""))
        query = query.where(
            memories.c.role == "document",
            ifnull(memories.c.ordinal, -1) == (-1 if new.ordinal is None else new.ordinal),
            memories.c.text_digest == item.digest,
        )
    return conn.execute(query).first()


def insert_chunks(
    conn: Connection, lexical: Lexical, owner: int, memory: int, item: Prepared
) -> None:
    """Chunks of a memory with their files, words, vectors and events."""
    made: list[tuple[int, NewChunk, BlobRef]] = []
    cipher, files = seal.of(conn), list[dict[str, Any]]()
    memory_id = _memory_id(conn, memory)
    for ordinal, (new, ref) in enumerate(zip(item.memory.chunks, item.refs, strict=True)):
        at = ordinal if new.ordinal is None else new.ordinal
        values: dict[str, Any] = {"memory_pk": memory, "owner_id": owner, "ordinal": at}
        values |= {"counter": new.counter, "last_recalled_at": new.last_recalled_at}
        place = rows.chunk_place(memory_id, at)
        pk = _insert(conn, chunks, {**values, **rows.chunk_values(cipher, place, new)})
        checksum = cipher.seal_text(ref.checksum, "blobs.checksum", place)
        files.append(
            {"chunk_pk": pk, "blob_id": ref.blob_id, "nbytes": ref.nbytes, "checksum": checksum}
        )
        made.append((pk, new, ref))
    conn.execute(insert(blobs), files)
    lexical.add(conn, owner, [(pk, new.text) for pk, new, _ in made])
    _insert_vectors(conn, made)
    tokens = sum(ref.tokens for _, _, ref in made)
    _record(conn, owner, [pk for pk, _, _ in made], "add", tokens)


def _memory_id(conn: Connection, pk: int) -> str:
    return str(conn.scalars(_MEMORY_ID, {"memory": pk}).one())


def _insert(conn: Connection, table: Table, values: dict[str, Any]) -> int:
    key = conn.execute(insert(table), values).inserted_primary_key
    assert key is not None  # both tables have an integer key
    return int(key[0])


def _insert_vectors(conn: Connection, made: Sequence[tuple[int, NewChunk, BlobRef]]) -> None:
    cipher = seal.of(conn)
    new = [(pk, np.asarray(c.vector, "<f4").tobytes()) for pk, c, _ in made if c.vector is not None]
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
