"""A memory cut into chunks anew, for another tokenizer, chunk size or text format.

In: a memory with its old chunks, of a bank or of an archive. Out: chunks of the same text under the
same headers, cut as they would have been when it was written. What is not there any more, because
parts were evicted, stays away: then each chunk that is left is cut on its own. Knows no model and
no bank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from memlong_agent.chunking import ChunkText, Tokenize, document_sections, exchange_chunks
from memlong_agent.errors import ConfigError
from memlong_agent.storage import NewMemory, OldChunk, StoredChunk, StoredMemory

_STAMP = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d)\] ")
_ROLE = re.compile(r"\] (\w+): \Z")
_WHOLE = 1 << 30  # chunks in a section: it stays one


def recut(
    memory: StoredMemory | NewMemory,
    old: Sequence[StoredChunk | OldChunk],
    tokenize: Tokenize,
    chunk_tokens: int,
) -> list[ChunkText]:
    """The chunks of a memory, at most `chunk_tokens` tokens each; `old` are those it has.

    Raises ConfigError when a header leaves too little room, or nothing says when it was written.
    """
    when = _written_at(memory, old)
    alone = [(chunk, memory.source, when, tokenize, chunk_tokens) for chunk in old]
    if _is_trimmed(old):
        return [new for each in alone for new in _alone(*each)]
    bodies = "".join(chunk.text for chunk in old)
    if memory.role == "document":
        return _section(bodies, memory.source, when, tokenize, chunk_tokens)
    if memory.messages:
        said = [(str(each["role"]), str(each["content"])) for each in memory.messages]
        # Of an exchange whose reply abstained, only what the user said was encoded.
        said = said[:1] if bodies == said[0][1] else said
        return exchange_chunks(said, when, tokenize, chunk_tokens)
    return [new for each in alone for new in _alone(*each)]


def same_cut(old: Sequence[StoredChunk], tokenize: Tokenize) -> list[ChunkText] | None:
    """The old chunks, if this tokenizer gives them the ids they have; else None."""
    ids = tokenize([chunk.header + chunk.text for chunk in old])
    if any(tuple(new) != chunk.token_ids for new, chunk in zip(ids, old, strict=True)):
        return None
    return [ChunkText(chunk.header, chunk.text, chunk.token_ids) for chunk in old]


def _alone(
    chunk: StoredChunk | OldChunk,
    source: str | None,
    when: datetime,
    tokenize: Tokenize,
    chunk_tokens: int,
) -> list[ChunkText]:
    role = _ROLE.search(chunk.header)
    if role is None:
        return _section(chunk.text, source, when, tokenize, chunk_tokens)
    return exchange_chunks([(role[1].lower(), chunk.text)], when, tokenize, chunk_tokens)


def _section(
    text: str, source: str | None, when: datetime, tokenize: Tokenize, chunk_tokens: int
) -> list[ChunkText]:
    cut = document_sections(text, source, when, tokenize, chunk_tokens, _WHOLE)
    return [chunk for section in cut for chunk in section]


def _written_at(
    memory: StoredMemory | NewMemory, old: Sequence[StoredChunk | OldChunk]
) -> datetime:
    """The time in the headers: of a long document it is when its reading began."""
    stamp = _STAMP.match(old[0].header) if old else None
    if stamp is None:
        if memory.created_at is None:
            raise ConfigError("A memory without a time cannot be cut anew. Give it created_at.")
        return memory.created_at
    return datetime.strptime(stamp[1], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)


def _is_trimmed(old: Sequence[StoredChunk | OldChunk]) -> bool:
    return [chunk.ordinal for chunk in old] != list(range(len(old)))
