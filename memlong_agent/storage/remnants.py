"""Sections of documents that came out of an archive with parts missing, found again by their text.

A section keeps the digest of its whole text when parts of it are evicted, so that it is known when
the document is read again. An archive cannot take that digest along, which is made under the bank's
own secret, and holds no text to make another of: a restored section has the digest of what was
left. It is known by that instead: all it holds stands in the new text, in order.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select

from memlong_agent.storage import rows, seal
from memlong_agent.storage.base import NewMemory
from memlong_agent.storage.dialects import ifnull
from memlong_agent.storage.models import chunks, memories

_NAMES = ("pk", "id", "source", "text_digest", "expires_at", "superseded_by", "recallable")


def find(conn: Connection, owner: int, new: NewMemory) -> Any:
    """The owner's section of the same place that is a part of `new`; None if there is none.

    Only one with a gap among or before its chunks: of one whose last parts went nobody can tell
    that they ever were.
    """
    if new.role != "document" or new.id is not None or new.message_id is not None:
        return None
    cipher = seal.of(conn)
    query = (
        select(*(memories.c[name] for name in _NAMES))
        .join(chunks, chunks.c.memory_pk == memories.c.pk)
        .where(
            memories.c.owner_id == owner,
            memories.c.role == "document",
            ifnull(memories.c.ordinal, -1) == (-1 if new.ordinal is None else new.ordinal),
        )
        .group_by(memories.c.pk)
        .having(func.max(chunks.c.ordinal) >= func.count())
    )
    if not cipher.sealed:  # else it cannot be compared before it is opened
        query = query.where(ifnull(memories.c.source, "") == (new.source or ""))
    for row in conn.execute(query.order_by(memories.c.pk)):
        source = cipher.open_text(row.source, "memories.source", row.id)
        if (source or "") == (new.source or "") and _stand_in(_held(conn, row), new.text):
            return row
    return None


def _held(conn: Connection, memory: Any) -> list[str]:
    """Texts of a memory's chunks, by ordinal."""
    query = select(chunks.c.ordinal, chunks.c.text).where(chunks.c.memory_pk == memory.pk)
    places = [
        (rows.chunk_place(memory.id, row.ordinal), row.text)
        for row in conn.execute(query.order_by(chunks.c.ordinal))
    ]
    return [seal.of(conn).open_text(text, "chunks.text", place) for place, text in places]


def _stand_in(parts: list[str], text: str) -> bool:
    at = 0
    for part in parts:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True
