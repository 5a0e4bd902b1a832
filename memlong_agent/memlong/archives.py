"""A bank's memories in one file, and back: what the model has to say about it.

In: a path, whose memories. Out: how much was written. An archive's K/V are taken as they are when
the same model made them; else, if asked for, its text is cut and encoded anew.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from pathlib import Path

from memlong_agent.chunking import document_sections, exchange_chunks
from memlong_agent.engine import Engine
from memlong_agent.errors import ConfigError
from memlong_agent.memlong.chat_text import abstained
from memlong_agent.memory import Draft
from memlong_agent.records import Exported, Restored
from memlong_agent.storage import NewMemory, Owner

Progress = Callable[[float], None]
"""Called with the share that is done, 0 to 1."""


class Archiving:
    """Archives of :class:`memlong_agent.MemLong`."""

    engine: Engine
    _tenant: str

    def export(
        self,
        path: str | Path,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        on_progress: Progress | None = None,
    ) -> Exported:
        """Write the memories of a user, of a session without a user, or of all, into one new file.

        It is plain text, also when the bank is encrypted; only this user may read it (mode 0600).
        Others may go on writing: it holds one moment. What is forgotten meanwhile is left out, and
        so is what running turns have pending.
        Raises ArchiveError when there is something at `path` or it cannot be written.
        """
        if (user_id and session_id) or "" in (user_id, session_id):
            raise ConfigError("Export whose memories? Pass user_id or session_id, or none for all.")
        named = user_id is not None or session_id is not None
        owner = self._owner(user_id, session_id or "") if named else None
        return _export(self.engine, path, self._tenant, owner, on_progress)

    def restore(
        self,
        path: str | Path,
        *,
        encode: bool = False,
        on_progress: Progress | None = None,
    ) -> Restored:
        """Take in what :meth:`export` wrote: all of it or nothing, under the old ids.

        Memories that are here already, with the same content, stay as they are. `encode=True` cuts
        and encodes the text anew, for an archive of another model or embedder.
        Others may read all the while, and write until the files are checked and copied. Then all
        rows are written in one transaction (1 s for 5,000 chunks): other writers wait, and get a
        StoreLockedError if it takes longer than their `timeout_s`.
        Raises ArchiveError for a damaged or hostile file and for memories that collide with others
        here, IncompatibleMemoryError for another model's; then nothing was written.
        """
        return _restore(self.engine, path, self._tenant, encode=encode, progress=on_progress)

    def _owner(self, user_id: str | None, session_id: str) -> Owner:
        if user_id is not None:
            return Owner(self._tenant, "user", user_id)
        return Owner(self._tenant, "session", session_id)


def _export(
    engine: Engine, path: str | Path, tenant: str, owner: Owner | None, progress: Progress | None
) -> Exported:
    """All memories of the owner, or of the tenant. Raises ArchiveError, StoreError."""
    target = _absolute(path)
    manifest = engine.bank.archives.export(target, tenant, owner, progress)
    counts = {name: manifest.counts[name] for name in ("memories", "chunks", "tokens", "items")}
    return Exported(path=str(target), nbytes=target.stat().st_size, **counts)


def _restore(
    engine: Engine, path: str | Path, tenant: str, *, encode: bool, progress: Progress | None
) -> Restored:
    """Take in an archive whole. Raises ArchiveError, IncompatibleMemoryError, StoreError."""
    counted, evicted = engine.bank.archives.restore(
        _absolute(path),
        tenant,
        tokenize=engine.tokenize,
        encode=(lambda memory: encoded_anew(engine, memory)) if encode else None,
        progress=progress,
    )
    return Restored(
        memories=counted.memories, present=counted.present, items=counted.items, evicted=evicted
    )


def encoded_anew(engine: Engine, memory: NewMemory) -> Draft:
    """A memory's text cut and encoded by this model; what was withheld in it stays withheld."""
    at = memory.created_at
    if at is None:
        raise ConfigError("A memory without a time cannot be encoded anew. Give it created_at.")
    room = engine.settings.chunk_tokens
    if memory.role == "document":
        when = at.astimezone(UTC)
        cut = document_sections([memory.text], memory.source, when, engine.tokenize, room)
        chunks = [chunk for section in cut for chunk in section]
    else:
        chunks = exchange_chunks(_said(memory), at, engine.tokenize, room)
    return Draft(
        role=memory.role, text=memory.text, chunks=engine.encode(chunks), source=memory.source
    )


def _said(memory: NewMemory) -> list[tuple[str, str]]:
    """Who said what; without messages (parts were evicted) the text stands for the user's."""
    said = [(str(each["role"]), str(each["content"])) for each in memory.messages or ()]
    if memory.turn is not None and len(said) > 1 and abstained(said[-1][1]):
        return said[:1]
    return said or [("user", memory.text)]


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()
