"""Memories and what hangs on them as lines of JSON, and back.

In: records of the storage room. Out: one line each, as text; from a line, the checked record. What
is checked here is a line alone; whether lines agree with each other is for verify.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from memlong_agent.kv import KVSpec
from memlong_agent.records import said
from memlong_agent.storage.archive import fields
from memlong_agent.storage.archive.scratch import ChunkRow
from memlong_agent.storage.archive.tensors import published
from memlong_agent.storage.base import (
    NewChunk,
    NewMemory,
    OldChunk,
    Owner,
    StoredChunk,
    StoredMemory,
)
from memlong_agent.storage.items import StoredItem

MAX_LINE = 32 << 20  # bytes; 1 MiB of text takes 9 MiB at the most
MAX_LINES = 4096  # of one file


@dataclass(frozen=True, slots=True)
class Line:
    """A checked memory."""

    values: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.values["id"])

    @property
    def owner(self) -> tuple[str, str]:
        kind, name = self.values["owner"]
        return kind, name

    @property
    def chunks(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.values["chunks"]
        return found

    @property
    def old_chunks(self) -> list[OldChunk]:
        return [OldChunk(each["ordinal"], each["header"], each["text"]) for each in self.chunks]

    @property
    def bodies(self) -> list[str]:
        """Header and text of each chunk: what its token ids are of."""
        return [each["header"] + each["text"] for each in self.chunks]

    def unique_keys(self) -> list[str]:
        """What no other memory of the bank may have too."""
        values = self.values
        mine = [*self.owner]
        keys = []
        if values["message_id"] is not None:
            keys.append(json.dumps(["message", *mine, values["session"], values["message_id"]]))
        if values["role"] == "document":
            place = [values["source"], values["ordinal"], values["text"]]
            keys.append(json.dumps(["section", *mine, *place]))
        return keys

    def memory(self, chunks: Sequence[NewChunk] = ()) -> NewMemory:
        """What goes into the bank."""
        same = ("id", "role", "text", "session", "messages", "source", "ordinal", "metadata")
        more = ("message_id", "created_at", "expires_at", "recallable", "turn")
        return NewMemory(chunks=chunks, **{name: self.values[name] for name in (*same, *more)})

    def is_in(self, stored: StoredMemory) -> bool:
        """Whether a memory of the bank is this one; counters, an end and so on may differ."""
        same = ("id", "role", "text", "session", "messages", "source", "ordinal", "metadata")
        more = ("message_id", "created_at")
        return all(self.values[name] == getattr(stored, name) for name in (*same, *more))


def new_chunks(line: Line, rows: Sequence[ChunkRow], spec: KVSpec) -> list[NewChunk]:
    """The chunks of a memory whose K/V files are published."""
    return [
        NewChunk(
            header=each["header"],
            text=each["text"],
            token_ids=tuple(np.frombuffer(row.token_ids, "<u4").tolist()),
            kv=published(spec, row.tokens),
            vector=None if row.vector is None else np.frombuffer(row.vector, "<f4"),
            ordinal=each["ordinal"],
            counter=each["counter"],
            last_recalled_at=each["last_recalled_at"],
        )
        for each, row in zip(line.chunks, rows, strict=True)
    ]


def recut(line: Line, made: Sequence[NewChunk]) -> tuple[str, list[NewChunk]]:
    """The line with other chunks; one that was cut the same way before keeps its counter."""
    before = {(each["ordinal"], each["text"]): each for each in line.chunks}
    own = [
        replace(
            each, ordinal=number, counter=old["counter"], last_recalled_at=old["last_recalled_at"]
        )
        if (old := before.get((number, each.text)))
        else replace(each, ordinal=number)
        for number, each in enumerate(made)
    ]
    parts = [
        {
            "ordinal": each.ordinal,
            "header": each.header,
            "text": each.text,
            "tokens": len(each.token_ids),
            "vector": each.vector is not None,
            "counter": each.counter,
            "last_recalled_at": _iso(each.last_recalled_at),
        }
        for each in own
    ]
    values = {key: _iso(v) if isinstance(v, datetime) else v for key, v in line.values.items()}
    return _json({**values, "chunks": parts}), own


def memory_line(
    memory: StoredMemory, owner: Owner, chunks: Sequence[StoredChunk], vectors: Mapping[int, bytes]
) -> str:
    """One memory with its chunks."""
    parts = [
        {
            "ordinal": each.ordinal,
            "header": each.header,
            "text": each.text,
            "tokens": each.tokens,
            "vector": each.pk in vectors,
            "counter": each.counter,
            "last_recalled_at": _iso(each.last_recalled_at),
        }
        for each in chunks
    ]
    return _json(
        {
            "id": memory.id,
            "rank": memory.pk,
            "owner": [owner.kind, owner.name],
            "role": memory.role,
            "text": memory.text,
            "session": memory.session,
            "messages": memory.messages,
            "source": memory.source,
            "ordinal": memory.ordinal,
            "metadata": memory.metadata,
            "message_id": memory.message_id,
            "created_at": _iso(memory.created_at),
            "expires_at": _iso(memory.expires_at),
            "recallable": memory.recallable,
            "turn": memory.turn,
            "chunks": parts,
        }
    )


def item_line(item: StoredItem, dimensions: int) -> str:
    owner = item.owner
    size = 0 if item.vectors is None else item.vectors.size
    return _json(
        {
            "owner": None if owner is None else [owner.kind, owner.name],
            "memory_id": None if item.bound is None else item.bound.memory_id,
            "namespace": list(item.namespace),
            "key": item.key,
            "value": item.value,
            "created_at": _iso(item.created_at),
            "updated_at": _iso(item.updated_at),
            "expires_at": _iso(item.expires_at),
            "ttl_s": item.ttl_s,
            "vectors": size // dimensions if dimensions else 0,
        }
    )


def note_line(values: Mapping[str, Any]) -> str:
    """A recall, or which memory is superseded by which."""
    return _json({key: _iso(v) if isinstance(v, datetime) else v for key, v in values.items()})


def read_memory(text: bytes | str, where: str) -> Line:
    """A checked line. ArchiveError for anything that no bank holds."""
    values = fields.record(fields.loads(text, where), fields.MEMORY, where)
    chunks = values["chunks"]
    if not isinstance(chunks, list) or not chunks:
        raise fields.refused(where, "has no chunks")
    values["chunks"] = [fields.record(each, fields.CHUNK, f"{where}, a chunk") for each in chunks]
    line = Line(values)
    _check_chunks(line, where)
    return line


def _check_chunks(line: Line, where: str) -> None:
    """They stand in order, and all that is said in them stands in the memory's text, in order."""
    last, at = -1, 0
    for chunk in line.chunks:
        if chunk["ordinal"] <= last:
            raise fields.refused(where, "has its chunks out of order")
        last = chunk["ordinal"]
        for part in said(chunk["text"]):
            found = line.values["text"].find(part, at)
            if found < 0:
                raise fields.refused(where, "has a chunk whose text is not in the memory's")
            at = found + len(part)


def _json(values: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(values, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair in metadata: JSON can say it escaped
        text = json.dumps(values)
    return text


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
