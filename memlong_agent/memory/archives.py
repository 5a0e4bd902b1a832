"""The bank in one file, and one file into the bank.

In: a path, whose memories. Out: how much was written. It joins the storage room's archives with the
bank's embedder and settings, and knows no model: how a text is tokenized or encoded is told to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from memlong_agent.config import Settings
from memlong_agent.embedding import Embedder
from memlong_agent.memory.carriers import Draft, chunk_vectors, new_memory
from memlong_agent.memory.items import item_vectors
from memlong_agent.storage import Counted, Manifest, NewChunk, NewMemory, OldChunk, Owner, Storage

Tokenize = Callable[[list[str]], list[list[int]]]
Encode = Callable[[NewMemory, Sequence[OldChunk]], Draft]
"""A memory and how it was cut in, the same memory cut and encoded anew out."""
Progress = Callable[[float], None]
"""Called with the share that is done, 0 to 1."""


def _ignored(done: float) -> None:
    return None


class ArchiveBank:
    """Exports and restores of one bank."""

    def __init__(
        self,
        storage: Storage,
        embedder: Embedder,
        settings: Settings,
        evict: Callable[[Owner, Collection[int]], int],
    ) -> None:
        """`evict` brings an owner below its capacity; returns how many chunks went."""
        self._storage, self._embedder, self._settings = storage, embedder, settings
        self._evict = evict

    def export(
        self, path: Path, tenant: str, owner: Owner | None, progress: Progress | None
    ) -> Manifest:
        """Write the memories of one owner, or of a tenant. ArchiveError, StoreError."""
        return self._storage.archives.export(
            path,
            tenant=tenant,
            owner=owner,
            dimensions=self._embedder.dimensions,
            progress=progress or _ignored,
        )

    def restore(
        self,
        path: Path,
        tenant: str,
        *,
        tokenize: Tokenize,
        encode: Encode | None,
        progress: Progress | None,
    ) -> tuple[Counted, int]:
        """Take in an archive whole, then evict where an owner is above capacity.

        With `encode` K/V and vectors are made anew. Returns what was written, and how many chunks
        were evicted.

        Raises:
            ArchiveError: it is damaged, hostile or collides with the bank. Nothing is written.
            IncompatibleMemoryError: another model or embedder wrote it, and `encode` is None.
        """
        counted = self._storage.archives.restore(
            path,
            tenant=tenant,
            dimensions=self._embedder.dimensions,
            tokenize=tokenize,
            encode=None if encode is None else lambda *old: self._encoded(encode(*old)),
            embed=None if encode is None else partial(item_vectors, self._embedder),
            max_memories=self._settings.max_memories,
            max_text_bytes=self._settings.max_text_bytes,
            progress=progress or _ignored,
        )
        return counted, sum(self._evict(owner, ()) for owner in counted.owners)

    def _encoded(self, draft: Draft) -> Sequence[NewChunk]:
        return new_memory(draft, chunk_vectors(self._embedder, draft.embedded_texts)).chunks
