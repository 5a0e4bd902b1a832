"""One vector index per owner, in RAM, always as new as the bank.

In: an owner and a query vector (E,). Out: keys of the nearest chunks. Built from the bank's vectors
when an owner first asks, then kept up by the bank's events, which other processes write too.
Knows no text and filters nothing but the keys it is told to.

Letters: E embedding dimensions.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from memlong_agent.index import Backend, Ids, VectorIndex, Vectors, make_index
from memlong_agent.storage import Owner, Storage

KEPT_OWNERS = 64  # 77 MB each at 1e5 chunks of 384 dimensions in fp16


class OwnerIndex:
    """The index of one owner behind a lock."""

    def __init__(self, storage: Storage, owner: Owner, dimensions: int, backend: Backend) -> None:
        self._storage = storage
        self._owner = owner
        self._dimensions = dimensions
        self._backend = backend
        self._lock = threading.Lock()
        self._index: VectorIndex | None = None
        self._key = 0

    def search(self, vector: Vectors, k: int, allowed: Ids | None = None) -> list[int]:
        """At most `k` keys (among `allowed`), nearest first, of all that was committed before this
        call; `vector` is (E,)."""
        with self._lock:
            ids, _ = self._caught_up().search(vector, k, allowed)
            return [int(each) for each in ids]

    def _caught_up(self) -> VectorIndex:
        key = self._storage.owner_key(self._owner)
        if self._index is None or key != self._key:  # erased meanwhile: of that no event tells
            self._index, self._key = self._built(), key
        self._replay(self._index)
        return self._index

    def _built(self) -> VectorIndex:
        index = make_index(self._dimensions, self._backend)
        # The stamp first: what changes while the vectors stream in is replayed afterwards.
        index.last_event = self._storage.last_event(self._owner)
        for pks, vectors in self._storage.vectors(self._owner):
            index.add(pks, vectors)
        return index

    def _replay(self, index: VectorIndex) -> None:
        events = self._storage.events_after(self._owner, index.last_event)
        if not events:
            return
        # Whatever was touched becomes what the bank has of it now: nothing, if it was deleted.
        touched = sorted({event.pk for event in events})
        pks, vectors = self._storage.vectors_of(self._owner, touched)
        index.remove(np.array(touched, np.int64))
        if pks.size:
            index.add(pks, vectors)
        index.last_event = events[-1].seq


class OwnerIndexes:
    """The indexes of the owners who asked last."""

    def __init__(
        self, storage: Storage, dimensions: int, backend: Backend, kept: int = KEPT_OWNERS
    ) -> None:
        self._storage = storage
        self._dimensions = dimensions
        self._backend = backend
        self._kept = kept
        self._lock = threading.Lock()
        self._indexes: OrderedDict[Owner, OwnerIndex] = OrderedDict()

    def of(self, owner: Owner) -> OwnerIndex:
        """The owner's index; empty until it is first searched."""
        with self._lock:
            index = self._indexes.pop(owner, None)
            if index is None:
                index = OwnerIndex(self._storage, owner, self._dimensions, self._backend)
            self._indexes[owner] = index
            while len(self._indexes) > self._kept:
                self._indexes.popitem(last=False)
            return index

    def forget(self, owner: Owner) -> None:
        """Drop the owner's index."""
        with self._lock:
            self._indexes.pop(owner, None)

    def __len__(self) -> int:
        return len(self._indexes)
