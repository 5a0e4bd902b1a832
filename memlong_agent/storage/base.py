"""The records of the storage room: what goes in and what comes out, plain and frozen.

What a bank promises of them is in contract.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memlong_agent.kv import KVChunk

Pks = NDArray[np.int64]  # (N,)
Matrix = NDArray[np.float32]  # (N, E)


def utc_now() -> datetime:
    """The default clock."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose memories they are. The kinds never collide: user `a` is not session `a`."""

    tenant: str
    kind: Literal["user", "session"]
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class NewChunk:
    """One chunk to be written."""

    header: str
    text: str
    token_ids: tuple[int, ...]
    """Ids of header and body, one for each token of `kv`."""
    kv: KVChunk
    vector: Matrix | None = None  # (E,)
    """Unit vector, the same length in the whole bank; None under a lexical-only embedder."""
    ordinal: int | None = None
    """Place in its memory, for restoring one of which parts were evicted; default: as listed."""
    counter: int = 0
    last_recalled_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class OldChunk:
    """One chunk as an archive has it, for whoever cuts its memory anew."""

    ordinal: int
    header: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class NewMemory:
    """What is written at once. At least one chunk."""

    role: str
    """`exchange`, `user`, `document`, ... ; only `document` has a meaning here (its unique key)."""
    text: str
    chunks: Sequence[NewChunk]
    session: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    source: str | None = None
    ordinal: int | None = None
    """Place of the section in its document, from 0."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    message_id: str | None = None
    created_at: datetime | None = None
    """Aware; default: the clock."""
    expires_at: datetime | None = None
    """From then on never recalled; it stays in lists until it is deleted."""
    recallable: bool = True
    pending: str | None = None
    """Turn that is still running; no `message_id` and no role `document` with it."""
    turn: str | None = None
    """Turn that wrote it; what that turn recalled is mentioned in it."""
    id: str | None = None
    """32 hexadecimal digits, for import and rebuild; default: random."""


@dataclass(frozen=True, slots=True)
class StoredMemory:
    """One memory as it stands in the bank."""

    pk: int
    id: str
    role: str
    text: str
    session: str | None
    messages: list[dict[str, Any]] | None
    source: str | None
    ordinal: int | None
    metadata: dict[str, Any]
    message_id: str | None
    created_at: datetime
    expires_at: datetime | None
    superseded_by: str | None
    recallable: bool
    pending: str | None
    turn: str | None
    tokens: int
    """Tokens of all chunks, headers included."""
    chunk_pks: tuple[int, ...]
    """Keys of its chunks, by ordinal."""

    @property
    def chunks(self) -> int:
        return len(self.chunk_pks)


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """One chunk as it stands in the bank, with what recall needs to know of its memory."""

    pk: int
    memory_pk: int
    memory_id: str
    ordinal: int
    header: str
    text: str
    token_ids: tuple[int, ...]
    tokens: int
    counter: int
    """Turns that recalled it."""
    created_at: datetime
    last_recalled_at: datetime | None
    session: str | None
    source: str | None
    role: str
    recallable: bool
    pending: str | None
    expires_at: datetime | None

    @property
    def said(self) -> bool:
        """Whether somebody said it; False for what was read in a document."""
        return self.role != "document"


@dataclass(frozen=True, slots=True)
class ChunkAge:
    """What eviction decides by."""

    pk: int
    tokens: int
    counter: int
    created_at: datetime
    last_recalled_at: datetime | None
    pending: str | None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the outbox that vector indexes replay."""

    seq: int
    pk: int
    op: Literal["add", "delete"]


@dataclass(frozen=True, slots=True)
class LexicalHit:
    """One chunk that shares words with the query."""

    chunk: StoredChunk
    score: float
    """Sum over shared terms of log(1 + chunks of the owner / chunks with the term)."""
    rare: bool
    """It holds a term that at most max(2, 0.5 %) of the owner's chunks have."""

    @property
    def pk(self) -> int:
        return self.chunk.pk


@dataclass(frozen=True, slots=True)
class RecallMark:
    """One chunk that a turn recalled."""

    pk: int
    rank: int
    score: float
    attention_mass: float | None = None


@dataclass(frozen=True, slots=True)
class OwnerStats:
    """What one owner has in the bank."""

    memories: int = 0
    chunks: int = 0
    tokens: int = 0
    nbytes: int = 0
    """Bytes of the K/V files, headers included."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed."""

    files: int
    memories: int
    """Pending memories of turns that died."""
