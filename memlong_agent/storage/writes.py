"""Statements that change memories' rows. The caller owns the write transaction and the files."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, delete, exists, insert, select, update

from memlong_agent.storage import reads, remnants, rows, seal, superseding
from memlong_agent.storage.base import Owner, RecallMark
from memlong_agent.storage.batching import batches
from memlong_agent.storage.chunkrows import Prepared, insert_chunks, memory_ids, remove_chunks
from memlong_agent.storage.dialects import ifnull, upsert
from memlong_agent.storage.lexical import Lexical
from memlong_agent.storage.models import (
    chunks,
    memories,
    meta,
    owners,
    recalls,
    sessions,
)

UNPURGED = "unpurged"
"""Row of meta: something was forgotten since the last purge."""
EPOCH = "epoch"
"""Row of meta by which everybody who has the bank open sees that it may be another's now."""
_AMENDED = ("role", "text", "messages", "metadata", "text_digest", "created_at", "turn")


def set_meta(conn: Connection, key: str, value: str) -> None:
    conn.execute(upsert(conn, meta, {"key": key, "value": value}, {"value": value}))


def note_unpurged(conn: Connection) -> None:
    """Remember that there are bytes to purge."""
    set_meta(conn, UNPURGED, secrets.token_hex(8))


def new_epoch(conn: Connection) -> None:
    """Make everybody who has the bank open look whether it is still theirs."""
    set_meta(conn, EPOCH, secrets.token_hex(8))


def owner_pk(conn: Connection, owner: Owner) -> int:
    """Key of an owner, made if need be."""
    row = {"tenant": owner.tenant, "kind": owner.kind, "name": owner.name}
    conn.execute(upsert(conn, owners, row))
    return reads.owner_row(conn, owner)[0]


def put(
    conn: Connection, lexical: Lexical, owner: int, items: Sequence[Prepared], now: datetime
) -> list[PutResult]:
    """Insert memories, or return or replace those that have their unique keys, in order."""
    done: list[PutResult] = []
    new: list[tuple[int, Prepared]] = []
    for item in items:
        found = find(conn, owner, item) or remnants.find(conn, owner, item.memory)
        if found is None:
            new.append((insert_memory(conn, owner, item, now), item))
            done.append(PutResult(new[-1][0], []))
        elif _stands(found, item, now):
            done.append(PutResult(found.pk, item.blob_ids))
        else:
            insert_chunks(conn, lexical, owner, new)  # what is rewritten may be one of these
            new = []
            unused = rewrite(conn, lexical, owner, found.pk, item, now)
            done.append(PutResult(found.pk, unused))
    insert_chunks(conn, lexical, owner, new)
    return done


def _stands(found: Any, item: Prepared, now: datetime) -> bool:
    """Whether what was found is the same text and not over."""
    expired = found.expires_at is not None and found.expires_at <= now
    hidden = found.superseded_by is not None or found.recallable != item.memory.recallable
    same = hmac.compare_digest(found.text_digest, item.digest)
    return same and not expired and not hidden


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
    insert_chunks(conn, lexical, owner, [(pk, item)])
    return unused


def amend(conn: Connection, lexical: Lexical, owner: int, pk: int, item: Prepared) -> list[str]:
    """As :func:`rewrite`, but what a memory is known by stays; no turn has written it."""
    old = list(conn.scalars(select(chunks.c.pk).where(chunks.c.memory_pk == pk)))
    unused = remove_chunks(conn, lexical, owner, old)
    values = {**_values(item, None, item.created_at), "turn": None}
    kept = {name: values[name] for name in _AMENDED}
    kept = rows.memory_values(seal.of(conn), _memory_id(conn, pk), kept)
    conn.execute(update(memories).where(memories.c.pk == pk).values(kept))
    insert_chunks(conn, lexical, owner, [(pk, item)])
    return unused


def remove_memories(
    conn: Connection, lexical: Lexical, owner: int, pks: Sequence[int]
) -> list[str]:
    """Delete memories with all that hangs on them; returns their K/V files."""
    unused: list[str] = []
    for batch in batches(pks):
        owned = list(conn.scalars(select(chunks.c.pk).where(chunks.c.memory_pk.in_(batch))))
        unused += remove_chunks(conn, lexical, owner, owned)
        conn.execute(delete(memories).where(memories.c.pk.in_(batch)))
    return unused


def trim(conn: Connection, pks: Sequence[int]) -> None:
    """Delete those memories of `pks` that have no chunk left; the others say what they still hold.

    The digest stays: a document of which parts were evicted is not written again.
    """
    empty = ~exists().where(chunks.c.memory_pk == memories.c.pk)
    for batch in batches(pks):
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


def _memory_id(conn: Connection, pk: int) -> str:
    return memory_ids(conn, [pk])[pk]


def _insert(conn: Connection, table: Table, values: dict[str, Any]) -> int:
    key = conn.execute(insert(table), values).inserted_primary_key
    assert key is not None  # the table has an integer key
    return int(key[0])
