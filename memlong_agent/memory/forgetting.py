"""The bank's half that forgets and changes: by id, by text, by session, by owner, by time.

In: an owner and what is to go. Out: how much went, and which exchanges had recalled it. It joins
storage and vector index; what is forgotten leaves both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from memlong_agent.config import Settings
from memlong_agent.embedding import Embedder
from memlong_agent.errors import StoreError
from memlong_agent.index import Backend
from memlong_agent.memory.archives import ArchiveBank
from memlong_agent.memory.carriers import Draft, chunk_vectors, memory_record, new_memory
from memlong_agent.memory.evict import victims
from memlong_agent.memory.items import ItemBank
from memlong_agent.memory.recall import Finder
from memlong_agent.records import Forgotten, Memory
from memlong_agent.storage import NewMemory, Owner, Storage
from memlong_agent.storage.base import utc_now

_log = logging.getLogger("memlong_agent.memory")


class ForgettingBank:
    """Forgetting calls of :class:`~memlong_agent.memory.MemoryBank`.

    With `purge`, the default, no byte of what went is in the bank's files when a call returns: a
    second or two among 1e5 chunks. Without, rows and K/V files go now and the last bytes with the
    next purge. StoreLockedError when other processes keep reading them: all but those bytes went.
    """

    def __init__(
        self,
        storage: Storage,
        embedder: Embedder,
        settings: Settings,
        index_backend: Backend = "auto",
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._storage = storage
        self._embedder = embedder
        self._settings = settings
        self._clock = clock
        self._finder = Finder(storage, embedder, index_backend)
        self.items = ItemBank(storage, embedder)
        self.archives = ArchiveBank(storage, embedder, settings, self._evict)

    def update(self, owner: Owner, memory_id: str, draft: Draft, *, purge: bool = True) -> Memory:
        """Give a memory another text, time and meaning under its id, then evict others if above
        capacity; session, source, message id and end stay.

        MemoryNotFoundError if the owner has none with this id.
        """
        new = self._embedded([draft])[0]
        stored, mentions = self._storage.update(owner, memory_id, new, purge=purge)
        self._evict(owner, stored.chunk_pks)
        return memory_record(stored, mentions)

    def supersede(self, owner: Owner, old_id: str, draft: Draft) -> Memory:
        """Write a memory that hides an old one from recall; deleting it by its id undoes this.

        MemoryNotFoundError if the owner has none with this id, ConfigError if it is superseded.
        """
        new = self._embedded([draft])[0]
        stored, mentions = self._storage.supersede(owner, old_id, new)
        self._evict(owner, stored.chunk_pks)
        return memory_record(stored, mentions)

    def delete(self, owner: Owner, ids: Sequence[str], *, purge: bool = True) -> Forgotten:
        """Forget memories. MemoryNotFoundError for any unknown id: none goes."""
        return self._storage.delete(owner, ids, purge=purge)

    def forget(self, owner: Owner, text: str, *, purge: bool = True) -> Forgotten:
        """Forget every memory that contains a text. ConfigError for a blank one."""
        return self._storage.forget(owner, text, purge=purge)

    def clear(self, owner: Owner, session: str | None = None, *, purge: bool = True) -> Forgotten:
        """Forget all of an owner, or all of one session."""
        return self._storage.clear(owner, session, purge=purge)

    def erase(self, owner: Owner, *, purge: bool = True) -> Forgotten:
        """Forget an owner with all that is theirs, the name too."""
        self._finder.forget(owner)
        return self._storage.erase(owner, purge=purge)

    def expire(self) -> None:
        """Forget memories whose time is over, some of them if they are many."""
        with left_for_later("Forgetting what has expired"):
            if count := self._storage.expire():
                _log.info("Forgot %d memories whose time was over.", count)

    def times_forgotten(self, owner: Owner) -> int:
        """Rises whenever any process forgets or changes memories of the owner."""
        return self._storage.times_forgotten(owner)

    def purge(self) -> None:
        """Leave no byte of what was forgotten, changed or evicted in the bank's files."""
        self._storage.purge()

    def unpurged(self) -> bool:
        """Whether bytes of something forgotten may still be in the bank's files."""
        return self._storage.unpurged()

    def _embedded(self, drafts: Sequence[Draft]) -> list[NewMemory]:
        """All chunks of all drafts embedded in one call."""
        texts = [parts for draft in drafts for parts in draft.embedded_texts]
        vectors = chunk_vectors(self._embedder, texts)
        memories, start = [], 0
        for draft in drafts:
            stop = start + len(draft.chunks)
            memories.append(new_memory(draft, vectors[start:stop]))
            start = stop
        return memories

    def _evict(self, owner: Owner, safe: Collection[int]) -> int:
        """Evict until the owner fits the capacity; returns how many chunks went."""
        capacity, policy, evicted = self._settings.capacity_tokens, self._settings.eviction, 0
        if capacity is None:
            return 0
        with left_for_later("Eviction"):
            if self._storage.tokens(owner) > capacity:
                pks = victims(self._storage.chunk_ages(owner), capacity, policy, safe)
                evicted = self._storage.delete_chunks(owner, pks)
                _log.info("Evicted %d chunks of one owner (capacity %d tokens).", evicted, capacity)
        return evicted


@contextmanager
def left_for_later(what: str) -> Iterator[None]:
    """The memory is written: what fails after that must not look as if it were not."""
    try:
        yield
    except StoreError as exc:
        _log.warning("%s is left for later: %s", what, exc)
