"""The rows of one moment, copied out of a bank.

In: a connection inside a read transaction, whose memories. Out: lines and binary rows in a scratch.
Everything comes through the reading functions of the room, as recall sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from sqlalchemy import Connection, select

from memlong_agent.storage import reads
from memlong_agent.storage.archive import lines
from memlong_agent.storage.archive.itemrows import owned_items
from memlong_agent.storage.archive.manifest import Manifest
from memlong_agent.storage.archive.scratch import ChunkRow, Note, Row, Scratch
from memlong_agent.storage.base import Owner
from memlong_agent.storage.models import chunks, memories, owners, recalls

_PAGE = 500


def copy_rows(
    conn: Connection, scratch: Scratch, about: Manifest, owner: Owner | None, now: datetime
) -> None:
    """All rows, as they are in this transaction."""
    query = select(owners.c.pk, owners.c.kind, owners.c.name).order_by(owners.c.pk)
    query = query.where(owners.c.tenant == about.tenant)
    if owner is not None:
        query = query.where(owners.c.kind == owner.kind, owners.c.name == owner.name)
    found = conn.execute(query).all()
    place = 0
    for pk, kind, name in found:
        place = _copy_owner(conn, scratch, Owner(about.tenant, kind, name), pk, place)
    for pk in [row.pk for row in found] if owner is not None else [None]:
        for item in owned_items(conn, about.tenant, pk, now):
            memory_id = None if item.bound is None else item.bound.memory_id
            vectors = None if item.vectors is None else item.vectors.astype("<f4").tobytes()
            line = lines.item_line(item, about.dimensions)
            scratch.note(Note("items", memory_id, None, line, vectors))


def _copy_owner(conn: Connection, scratch: Scratch, owner: Owner, pk: int, place: int) -> int:
    """Memories in the order of their chunks; returns the next free place."""
    mine = select(chunks.c.memory_pk).join(memories, memories.c.pk == chunks.c.memory_pk)
    mine = mine.where(chunks.c.owner_id == pk, memories.c.pending.is_(None))
    after = 0
    while True:
        page = mine.where(chunks.c.pk > after).order_by(chunks.c.pk).limit(_PAGE)
        pks = list(dict.fromkeys(conn.scalars(page)))
        if not pks:
            break
        stored = reads.stored_memories(conn, pks)
        keys = [each for memory in stored for each in memory.chunk_pks]
        found = {each.pk: each for each in reads.stored_chunks(conn, pk, keys)}
        refs, vectors = reads.blob_refs(conn, keys), _vectors(conn, pk, keys)
        for memory in stored:
            own = [found[each] for each in memory.chunk_pks]
            rows = [
                ChunkRow(
                    ordinal=each.ordinal,
                    tokens=each.tokens,
                    token_ids=np.asarray(each.token_ids, "<u4").tobytes(),
                    vector=vectors.get(each.pk),
                    ref=refs[each.pk],
                )
                for each in own
            ]
            line = lines.memory_line(memory, owner, own, vectors)
            scratch.add(Row(place, memory.id, memory.pk, owner.kind, owner.name, line), rows)
            place += 1
            if memory.superseded_by is not None:
                values = {"memory_id": memory.id, "superseded_by": memory.superseded_by}
                line = lines.note_line(values)
                scratch.note(Note("superseded", memory.id, memory.superseded_by, line))
        after = max(keys)  # chunks of a memory are written together: none of it is left behind
    _copy_recalls(conn, scratch, pk)
    return place


def _copy_recalls(conn: Connection, scratch: Scratch, owner_pk: int) -> None:
    query = (
        select(recalls, memories.c.id.label("memory_id"), chunks.c.ordinal.label("chunk"))
        .join(memories, memories.c.pk == recalls.c.memory_pk)
        .outerjoin(chunks, chunks.c.pk == recalls.c.chunk_pk)
        .where(recalls.c.owner_id == owner_pk, memories.c.pending.is_(None))
        .order_by(recalls.c.pk)
        .limit(_PAGE)
    )
    names = ("memory_id", "chunk", "turn", "rank", "score", "attention_mass", "at")
    after = 0
    while rows := conn.execute(query.where(recalls.c.pk > after)).all():
        for row in rows:
            line = lines.note_line({name: getattr(row, name) for name in names})
            scratch.note(Note("recalls", row.memory_id, None, line))
        after = rows[-1].pk


def _vectors(conn: Connection, owner_pk: int, keys: Sequence[int]) -> dict[int, bytes]:
    pks, matrix = reads.vectors_of(conn, owner_pk, keys)
    rows = zip(pks.tolist(), matrix, strict=True)
    return {pk: vector.astype("<f4").tobytes() for pk, vector in rows}
