"""A bank's memories in one file, and back: what the model has to say about it.

In: a path, whose memories. Out: how much was written. An archive's K/V are taken as they are when
the same model made them; else, if asked for, its text is cut and encoded anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from memlong_agent.engine import Engine
from memlong_agent.errors import ConfigError
from memlong_agent.memlong.recut import recut
from memlong_agent.memory import Draft
from memlong_agent.records import Exported, Restored
from memlong_agent.storage import NewMemory, OldChunk, Owner

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
        rows are written in one transaction (2 s for 5,000 chunks): other writers wait, and get a
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
        encode=partial(encoded_anew, engine) if encode else None,
        progress=progress,
    )
    return Restored(
        memories=counted.memories, present=counted.present, items=counted.items, evicted=evicted
    )


def encoded_anew(engine: Engine, memory: NewMemory, old: Sequence[OldChunk]) -> Draft:
    """A memory cut and encoded by this model; what was evicted or withheld of it stays away."""
    cut = recut(memory, old, engine.tokenize, engine.settings.chunk_tokens)
    return Draft(
        role=memory.role, text=memory.text, chunks=engine.encode(cut), source=memory.source
    )


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()
