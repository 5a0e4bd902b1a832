"""What a row cannot hold is refused before anything is written.

In: a new memory. Out: nothing, or ConfigError.
"""

from __future__ import annotations

import json
import re

from memlong_agent.errors import ConfigError
from memlong_agent.storage.base import NewMemory

_ID = re.compile(r"[0-9a-f]{32}")


def check(memory: NewMemory) -> None:
    """ConfigError for anything a row could not hold; nothing is written before this."""
    problem = _problem(memory)
    if problem:
        raise ConfigError(f"This memory cannot be written: {problem}. Correct it and try again.")


def _problem(memory: NewMemory) -> str | None:
    if not memory.chunks:
        return "it has no chunks"
    if memory.id is not None and not _ID.fullmatch(memory.id):
        return f"id {memory.id!r} is not 32 hexadecimal digits"
    if memory.pending is not None and (memory.message_id is not None or memory.role == "document"):
        return "a pending memory has neither a message_id nor the role 'document'"
    texts = {name: getattr(memory, name) for name in ("text", "source", "session", "message_id")}
    for name, text in [*texts.items(), *(("chunk", c.header + c.text) for c in memory.chunks)]:
        if "\0" in (text or ""):  # PostgreSQL has none, SQLite's functions end at one
            return f"its {name} holds a NUL character"
    for name in ("created_at", "expires_at"):
        value = getattr(memory, name)
        if value is not None and value.tzinfo is None:
            return f"{name} has no time zone"
    try:
        json.dumps([memory.metadata, list(memory.messages or ())], allow_nan=False)
        memory.text.encode()
        for chunk in memory.chunks:
            (chunk.header + chunk.text).encode()
    except (TypeError, ValueError, RecursionError) as exc:  # not JSON, or a lone surrogate
        return str(exc)
    for chunk in memory.chunks:
        if len(chunk.token_ids) != chunk.kv.tokens:
            return (
                f"a chunk has {len(chunk.token_ids)} token ids and K/V of {chunk.kv.tokens} tokens"
            )
        if chunk.vector is not None and chunk.vector.ndim != 1:
            return f"a chunk's vector has {chunk.vector.ndim} dimensions instead of one"
    return None
