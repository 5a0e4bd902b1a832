"""Rows and records: column values of what is new, records of what is stored.

In: records and rows, and the bank's cipher. Out: the other one. This is where memories and chunks
are sealed and opened; vectors, which are many, are opened where they are read.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import numpy as np

from memlong_agent.storage.base import NewChunk, NewMemory, StoredChunk, StoredMemory
from memlong_agent.storage.kvfile import BlobRef
from memlong_agent.storage.seal import Cipher

_TEXTS = {"text", "source"}
_JSON = {"messages", "metadata"}


def chunk_place(memory_id: str, ordinal: int) -> str:
    """What identifies a chunk for ever, whatever its key."""
    return f"{memory_id}/{ordinal}"


def text_digest(cipher: Cipher, secret: str, memory: NewMemory) -> str:
    """HMAC-SHA256 under the bank's secret: equal texts are found, none is guessed from outside."""
    digest = _hmac(secret, memory.text)
    return with_source(secret, digest, memory.source) if cipher.sealed else digest


def with_source(secret: str, digest: str, source: str | None) -> str:
    """The digest of an encrypted bank: a sealed source cannot be compared, so it is part of it."""
    return _hmac(secret, json.dumps([source or "", digest]))


def _hmac(secret: str, text: str) -> str:
    return hmac.new(bytes.fromhex(secret), text.encode(), hashlib.sha256).hexdigest()


def memory_values(cipher: Cipher, memory_id: str, values: dict[str, Any]) -> dict[str, Any]:
    """Column values of a memory, those that are sealed sealed."""
    if not cipher.sealed:
        return values
    sealed = dict(values)
    for name in _TEXTS & set(values):
        sealed[name] = cipher.seal_text(values[name], f"memories.{name}", memory_id)
    for name in _JSON & set(values):
        sealed[name] = cipher.seal_json(values[name], f"memories.{name}", memory_id)
    return sealed


def chunk_values(cipher: Cipher, place: str, new: NewChunk) -> dict[str, Any]:
    """Column values of a chunk's own text."""
    ids = np.asarray(new.token_ids, "<u4").tobytes()
    sealed = sealed_chunk(cipher, place, new.header, new.text, ids)
    return {**sealed, "tokens": len(new.token_ids)}


def sealed_chunk(
    cipher: Cipher, place: str, header: str, text: str, token_ids: bytes
) -> dict[str, Any]:
    """The column values of a chunk that are sealed."""
    return {
        "header": cipher.seal_text(header, "chunks.header", place),
        "text": cipher.seal_text(text, "chunks.text", place),
        "token_ids": cipher.seal(token_ids, "chunks.token_ids", place),
    }


def blob_ref(cipher: Cipher, row: Any) -> BlobRef:
    """The checksum is sealed too: it binds the file to the chunk that it was written for."""
    place = chunk_place(row.memory_id, row.ordinal)
    checksum = cipher.open_text(row.checksum, "blobs.checksum", place)
    return BlobRef(row.blob_id, row.tokens, row.nbytes, checksum)


def chunk(cipher: Cipher, row: Any) -> StoredChunk:
    """Of a row of chunks with what it takes from its memory and session."""
    place = chunk_place(row.memory_id, row.ordinal)
    ids = cipher.open(row.token_ids, "chunks.token_ids", place)
    return StoredChunk(
        pk=row.pk,
        memory_pk=row.memory_pk,
        memory_id=row.memory_id,
        ordinal=row.ordinal,
        header=cipher.open_text(row.header, "chunks.header", place),
        text=cipher.open_text(row.text, "chunks.text", place),
        token_ids=tuple(np.frombuffer(ids, "<u4").tolist()),
        tokens=row.tokens,
        counter=row.counter,
        created_at=row.created_at,
        last_recalled_at=row.last_recalled_at,
        session=row.session,
        source=cipher.open_text(row.source, "memories.source", row.memory_id),
        role=row.role,
        recallable=row.recallable,
        pending=row.pending,
        expires_at=row.expires_at,
    )


def memory(cipher: Cipher, row: Any, owned: list[tuple[int, int]]) -> StoredMemory:
    """Of a row of memories; `owned` are (key, tokens) of its chunks, by ordinal."""
    return StoredMemory(
        pk=row.pk,
        id=row.id,
        role=row.role,
        text=cipher.open_text(row.text, "memories.text", row.id),
        session=row.session,
        messages=cipher.open_json(row.messages, "memories.messages", row.id),
        source=cipher.open_text(row.source, "memories.source", row.id),
        ordinal=row.ordinal,
        metadata=cipher.open_json(row.metadata, "memories.metadata", row.id),
        message_id=row.message_id,
        created_at=row.created_at,
        expires_at=row.expires_at,
        superseded_by=row.newer_id,
        recallable=row.recallable,
        pending=row.pending,
        turn=row.turn,
        tokens=sum(tokens for _, tokens in owned),
        chunk_pks=tuple(pk for pk, _ in owned),
    )
