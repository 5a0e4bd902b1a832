"""What users get back: memories, recalls, replies. Plain, frozen, without tensors."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from memlong_agent.config import Frozen

_ROLE_BORDER = re.compile(r"(?:^|\n)(?:User|Assistant): ")


class Memory(Frozen):
    """What was written at once: one exchange, or one section of a document."""

    id: str
    """Random 128-bit id, 32 hexadecimal digits; stable across update and rebuild."""
    role: Literal["user", "assistant", "exchange", "document"]
    """Who said it; an exchange holds both, a document section nobody."""
    text: str
    session_id: str | None = None
    source: str | None = None
    created_at: datetime
    metadata: dict[str, Any] = Field(default_factory=dict)
    tokens: int
    """Tokens of all its chunks, headers included."""
    superseded_by: str | None = None
    """The memory that is recalled in its place."""
    mentions: tuple[str, ...] = ()
    """After `update` and `supersede`: ids of the exchanges that recalled what it replaced, oldest
    first. They may repeat it."""


class Forgotten(Frozen):
    """What a call forgot."""

    memories: int
    """How many."""
    mentions: tuple[str, ...] = ()
    """Ids of the owner's other exchanges that recalled any of them, oldest first. They may repeat
    what was forgotten; they are still there."""


class Recall(Frozen):
    """One chunk that was put into the attention, and why."""

    memory_id: str
    chunk: int
    """Ordinal of the chunk in its memory, from 0."""
    text: str
    score: float
    """Cosine of query and chunk vector; 0.0 under `embedder="lexical"`."""
    session_id: str | None = None
    source: str | None = None
    created_at: datetime
    attention_mass: float | None = None
    """Share of the last prompt token's attention, mean over heads and retrieval layers."""

    def stands_in(self, prompt: str) -> bool:
        """Whether a prompt shows it already: what each side said in it, wherever that stands."""
        return all(part in prompt for part in said(self.text))


def said(text: str) -> list[str]:
    """What each side said in the text of a chunk, without the roles before it."""
    return [part for part in map(str.strip, _ROLE_BORDER.split(text)) if part]


class Usage(Frozen):
    """Tokens of one turn."""

    prompt_tokens: int = 0
    recalled_tokens: int = 0
    completion_tokens: int = 0
    written_tokens: int = 0
    overflowed_tokens: int = 0
    """Tokens that left the live window while this turn ran."""
    evicted: int = 0
    """Chunks evicted by this turn's write."""


class ToolCall(Frozen):
    """A tool that the model wants to be called."""

    id: str
    """Nine letters and digits, unique; the form that every chat template accepts."""
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Reply(Frozen):
    """The answer of one turn."""

    text: str
    recalled: tuple[Recall, ...] = ()
    attention_mass: float = 0.0
    """Mean share of attention on memory over the whole reply, 0..1."""
    finish_reason: Literal["stop", "length"] = "stop"
    usage: Usage = Usage()
    session_id: str | None = None
    memory_ids: tuple[str, ...] = ()
    """Memories written by this turn."""
    prompt_ids: tuple[int, ...] = Field(default=(), repr=False)
    """Token ids of the live window when the reply began; recalled K/V are not among them."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that the reply asks for; such a reply is not final, and is not written."""


class Rebuilt(Frozen):
    """What a rebuild did."""

    memories: int
    """How many were made anew by this call."""
    chunks: int
    """How many chunks they have now."""
    items: int = 0
    """Items that were embedded anew, by the texts in their values."""
    resumed: bool = False
    """Whether it went on where an interrupted one stopped."""
    changes: tuple[str, ...] = ()
    """What differs from the model or embedder of before, one phrase each."""


class Exported(Frozen):
    """What an export wrote."""

    path: str
    memories: int
    chunks: int
    tokens: int
    items: int
    """JSON values under namespaces and keys that belong to the owner."""
    nbytes: int
    """Bytes of the archive."""


class Restored(Frozen):
    """What a restore wrote."""

    memories: int
    present: int
    """Memories of the archive that were in the bank already."""
    items: int
    evicted: int = 0
    """Chunks, if an owner was then above its capacity."""
