"""An owner's memories: add, search, get, list, change, forget. No generation call.

In: texts, documents, messages. Out: records. A document is read section by section in bounded
memory; what was written stays written when reading stops half-way, and reading it again goes on.
"""

from __future__ import annotations

import builtins
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from memlong_agent.chunking import ChunkText, clean_text, document_sections, exchange_chunks
from memlong_agent.engine import Engine
from memlong_agent.errors import ConfigError
from memlong_agent.memlong.exchange import exchange
from memlong_agent.memory import Draft
from memlong_agent.records import Forgotten, Memory, Recall
from memlong_agent.storage import Owner

Clock = Callable[[], datetime]
Progress = Callable[[int], None]
"""Called after each written batch with the characters written so far."""
_SECTIONS_PER_BATCH = 4  # 64 chunks at most: one commit, one embedder call, one encoder batch
_ROLES = ("user", "assistant")


class Memories:
    """What one owner remembers. `session_id` is where new memories belong.

    Forgetting and changing also drop the live windows of the owner's sessions, in every process:
    they resume from what the bank still holds. With `purge`, the default, no byte of what went is
    in the bank's files when the call returns, which takes a second or two among 1e5 chunks.
    Without, rows and K/V files go at once and the last bytes with the next purge: that of another
    call, of `MemLong.purge()` or of `memlong doctor`. A turn that had recalled a memory before it
    was forgotten, and ends after, may still repeat it.
    Raises StoreLockedError when others read the bank for longer than the timeout; all is forgotten
    then, but for bytes that the next purge removes.
    """

    def __init__(
        self, engine: Engine, owner: Owner, clock: Clock, *, session_id: str | None = None
    ) -> None:
        self._engine, self._owner, self._clock = engine, owner, clock
        self._session_id = session_id

    def add(
        self,
        content: str | Iterable[str] | Sequence[Mapping[str, Any]],
        *,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        message_id: str | None = None,
        expires_at: datetime | None = None,
        on_progress: Progress | None = None,
    ) -> builtins.list[Memory]:
        """Remember a text, a document or one exchange; returns what was written, in order.

        A text without `source` is remembered as something the user said; with `source` it is a
        document, cut into sections of at most 16 chunks, one `Memory` each; a stream of strings is
        a document too. A list of `{"role", "content"}` messages is one exchange. Adding the same
        document, or the same `message_id`, again writes nothing twice.
        Raises ConfigError for an empty text, invalid characters or unknown roles.
        """
        extra = {"metadata": dict(metadata or {}), "expires_at": expires_at}
        if isinstance(content, str | bytes):
            text = clean_text(content)
            if source is None:
                draft = self._spoken([("user", text)], message_id, extra)
                return self._engine.bank.add(self._owner, [draft]).memories
            return self._document([text], source, extra, on_progress)
        parts: builtins.list[Any] = []
        stream = iter(content)
        for first in stream:
            if isinstance(first, str):
                return self._document(_joined(first, stream), source, extra, on_progress)
            parts.append(first)
        draft = self._spoken(_messages(parts), message_id, extra)
        return self._engine.bank.add(self._owner, [draft]).memories

    def add_turn(self, said: str, reply: str, *, message_id: str | None = None) -> Memory:
        """Remember a finished turn that was answered elsewhere, as a session remembers its own.

        Without a `message_id`, a turn whose user text is that of the session's latest exchange
        replaces that exchange. Raises ConfigError for an empty text.
        """
        both = [("user", clean_text(said)), ("assistant", clean_text(reply))]
        draft = exchange(
            self._engine, both, self._clock(), session=self._session_id, message_id=message_id
        )
        written = self._engine.bank.finish_turn(self._owner, uuid.uuid4().hex, draft)
        return written.memories[0]

    def search(
        self, query: str, *, top_k: int = 8, session_id: str | None = None
    ) -> builtins.list[Recall]:
        """What would be recalled for `query` from all sessions, or from one, best first.

        Counts nothing. Raises ConfigError for a top_k below 1.
        """
        return self._engine.bank.search(self._owner, query, top_k=top_k, session=session_id)

    def get(self, memory_id: str) -> Memory:
        """One memory. Raises MemoryNotFoundError."""
        return self._engine.bank.get(self._owner, memory_id)

    def list(
        self, *, limit: int | None = None, session_id: str | None = None
    ) -> builtins.list[Memory]:
        """Memories of all the owner's sessions, or of one, newest first."""
        return self._engine.bank.list(self._owner, session_id, limit)

    def update(self, memory_id: str, text: str, *, purge: bool = True) -> Memory:
        """Replace text, K/V, vector and time in one commit; id, session, source and metadata stay.

        `mentions` of the memory returned are the exchanges that recalled the old text. An item that
        is bound to the memory keeps its own value. Raises MemoryNotFoundError.
        """
        return self._engine.bank.update(
            self._owner, memory_id, self._changed(memory_id, text), purge=purge
        )

    def supersede(self, old_id: str, text: str) -> Memory:
        """Remember `text` in place of a memory, which is kept but no longer recalled.

        `mentions` of the new memory are the exchanges that recalled the old one. Deleting the new
        one by its id undoes this; when it goes otherwise (forgotten by text, expired, evicted), the
        old one stays hidden. Raises MemoryNotFoundError, and ConfigError if the old one is
        superseded already.
        """
        draft = self._changed(old_id, text)
        return self._engine.bank.supersede(self._owner, old_id, draft)

    def delete(self, memory_id: str | Sequence[str], *, purge: bool = True) -> Forgotten:
        """Forget one or several, all or none. Raises MemoryNotFoundError.

        `purge` is as for :class:`Memories`; what a memory superseded is recalled again.
        """
        ids = [memory_id] if isinstance(memory_id, str) else builtins.list(memory_id)
        return self._engine.bank.delete(self._owner, ids, purge=purge)

    def forget(self, *, text: str, purge: bool = True) -> Forgotten:
        """Forget every memory that contains a text, and the items bound to it.

        Searched are texts, messages, sources, message ids and metadata, for the text anywhere, also
        inside words and across the sections of a document. Letter case, the amount of white space
        and compatible forms of a letter make no difference. An exchange whose reply repeats the
        text contains it too. Raises ConfigError for a blank text.
        """
        return self._engine.bank.forget(self._owner, text, purge=purge)

    def clear(self, *, session_id: str | None = None, purge: bool = True) -> Forgotten:
        """Forget all memories of the owner, or those of one session."""
        return self._engine.bank.clear(self._owner, session_id, purge=purge)

    def erase(self, *, purge: bool = True) -> Forgotten:
        """Forget all of the owner: memories, items, sessions, the recall log and the owner's name.

        Writing afterwards begins anew.
        """
        return self._engine.bank.erase(self._owner, purge=purge)

    def _changed(self, memory_id: str, text: str) -> Draft:
        """Another text for a memory, of its kind and in its place."""
        old, text = self._engine.bank.get(self._owner, memory_id), clean_text(text)
        if old.role != "document":
            draft = self._spoken([("user", text)], None, {"metadata": old.metadata})
        else:
            cut = self._sections([text], old.source)
            chunks = [chunk for section in cut for chunk in section]
            draft = self._section(chunks, old.source, None, {"metadata": old.metadata})
        return replace(draft, session=old.session_id)

    def _spoken(
        self, said: Sequence[tuple[str, str]], message_id: str | None, extra: Mapping[str, Any]
    ) -> Draft:
        now, engine = self._clock(), self._engine
        chunks = exchange_chunks(said, now, engine.tokenize, engine.settings.chunk_tokens)
        plain = len(said) == 1
        return Draft(
            role=said[0][0] if plain else "exchange",
            text=said[0][1] if plain else "\n".join(f"{r.capitalize()}: {c}" for r, c in said),
            chunks=engine.encode(chunks),
            session=self._session_id,
            messages=[{"role": role, "content": content} for role, content in said],
            message_id=message_id,
            created_at=now,
            **extra,
        )

    def _document(
        self,
        text: Iterable[str],
        source: str | None,
        extra: Mapping[str, Any],
        on_progress: Progress | None,
    ) -> builtins.list[Memory]:
        written: builtins.list[Memory] = []
        done = 0
        for batch in _batches(self._sections(text, source)):
            drafts = [self._section(chunks, source, ordinal, extra) for ordinal, chunks in batch]
            written += self._engine.bank.add(self._owner, drafts).memories
            done += sum(len(draft.text) for draft in drafts)
            if on_progress is not None:
                on_progress(done)
        return written

    def _sections(
        self, text: Iterable[str], source: str | None
    ) -> Iterator[builtins.list[ChunkText]]:
        engine = self._engine
        return document_sections(
            text, source, self._clock(), engine.tokenize, engine.settings.chunk_tokens
        )

    def _section(
        self,
        chunks: Sequence[ChunkText],
        source: str | None,
        ordinal: int | None,
        extra: Mapping[str, Any],
    ) -> Draft:
        return Draft(
            role="document",
            text="".join(chunk.body for chunk in chunks),
            chunks=self._engine.encode(chunks),
            session=self._session_id,
            source=source,
            ordinal=ordinal,
            created_at=self._clock(),
            **extra,
        )


def _batches(
    sections: Iterator[builtins.list[ChunkText]],
) -> Iterator[builtins.list[tuple[int, builtins.list[ChunkText]]]]:
    batch: builtins.list[tuple[int, builtins.list[ChunkText]]] = []
    for numbered in enumerate(sections):
        batch.append(numbered)
        if len(batch) == _SECTIONS_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _joined(first: str, rest: Iterator[Any]) -> Iterator[str]:
    yield first
    yield from rest


def _messages(parts: Sequence[Any]) -> builtins.list[tuple[str, str]]:
    said = []
    for part in parts:
        role = part.get("role") if isinstance(part, Mapping) else None
        if role not in _ROLES or not isinstance(part.get("content"), str):
            raise ConfigError(
                f"{part!r} is not a message. Pass dictionaries with role (user or assistant) and "
                "content."
            )
        said.append((str(role), clean_text(part["content"])))
    if not said:
        raise ConfigError("There is nothing to remember. Pass a text or at least one message.")
    return said
