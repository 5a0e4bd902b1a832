"""Items with the vectors of their texts: put, and search by meaning or by time.

In: items, their texts, questions. Out: items with their cosines. It joins the storage room's items
with the bank's embedder, and knows no model and no memory.

Letters: n texts of one item, E embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from memlong_agent.embedding import Embedder, Vectors
from memlong_agent.storage import Binding, ItemStore, Namespace, NewItem, Storage, StoredItem

Accept = Callable[[dict[str, Any]], bool]


class ItemBank:
    """All items of one bank. Thread-safe; calls may raise StoreError."""

    def __init__(self, storage: Storage, embedder: Embedder) -> None:
        self._embedder = embedder
        self.rows: ItemStore = storage.items
        """The items without their meaning: get, refresh, delete, namespaces."""

    def put(self, tenant: str, item: NewItem, texts: Sequence[str]) -> Binding | None:
        """Write an item that `texts` will find; returns what it was bound to before."""
        texts = [text for text in texts if text.strip()]
        if texts and self._embedder.dimensions:
            item = replace(item, vectors=self._embedder.embed_texts(texts))  # (n, E)
        return self.rows.put(tenant, item)

    def search(
        self,
        tenant: str,
        prefix: Namespace,
        *,
        query: str | None,
        accept: Accept | None,
        limit: int,
        offset: int,
    ) -> list[tuple[StoredItem, float | None]]:
        """Accepted items below `prefix` with their cosines to the query, best first.

        Without a query, or under `embedder="lexical"`, the last written come first and have no
        cosine. Items without texts come after those with.
        """
        asked = query if query and query.strip() and self._embedder.dimensions else None
        if asked is None and accept is None:
            found = self.rows.list(tenant, prefix, limit=limit, offset=offset)
            return [(item, None) for item in found]
        every = self.rows.list(tenant, prefix, limit=None, vectors=asked is not None)
        kept = [item for item in every if accept is None or accept(item.value)]
        if asked is None:
            return [(item, None) for item in kept[offset : offset + limit]]
        vector = self._embedder.embed_query(asked)  # (E,)
        scored = [(item, _cosine(item.vectors, vector)) for item in kept]
        scored.sort(key=lambda pair: -2.0 if pair[1] is None else pair[1], reverse=True)
        return scored[offset : offset + limit]


def item_vectors(embedder: Embedder, value: Any) -> Vectors | None:
    """Vectors (n, E) of the texts in a value, for an item that is embedded anew: what it was found
    by when it was put is not kept."""
    texts = [text for text in _texts(value) if text.strip()]
    return embedder.embed_texts(texts) if texts and embedder.dimensions else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def _cosine(vectors: Vectors | None, query: Vectors) -> float | None:
    """The best of an item's n texts."""
    if vectors is None or not vectors.size:
        return None
    return float(np.nan_to_num(vectors.reshape(-1, len(query)) @ query).max())
