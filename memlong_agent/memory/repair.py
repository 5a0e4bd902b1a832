"""A bank's condition, and its repair: what is derived from the text is made again.

In: a bank, and the engine's encoder. Out: plain findings. It joins the storage room's repairs with
the bank's embedder; it knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memlong_agent.embedding import Embedder, Vectors
from memlong_agent.kv import KVChunk
from memlong_agent.memory.carriers import chunk_vectors, embedded_parts
from memlong_agent.storage import Condition, Storage, StoredChunk

Encode = Callable[[Sequence[StoredChunk]], Sequence[KVChunk]]


class Repairs:
    """Of one bank. Every call may raise StoreError."""

    def __init__(self, storage: Storage, embedder: Embedder) -> None:
        self._storage, self._embedder = storage, embedder

    def condition(self) -> Condition:
        """What is no fault, but worth knowing."""
        return self._storage.condition()

    def run(self, encode: Encode) -> list[str]:
        """Make anew what is missing or damaged and can be derived; a sentence for each kind."""
        return self._storage.repair(encode, self._embed)

    def _embed(self, chunks: Sequence[StoredChunk]) -> Sequence[Vectors | None]:
        if not self._embedder.dimensions:
            return [None] * len(chunks)
        return chunk_vectors(self._embedder, [embedded_parts(c.header, c.text) for c in chunks])
