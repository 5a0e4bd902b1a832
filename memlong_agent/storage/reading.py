"""The half of the bank that changes nothing: look-ups, recall's readers, streams for indexes.

In: an owner and keys. Out: frozen records, arrays, K/V. Every call sees one consistent state,
except :meth:`Reader.vectors`, which is a stream of such states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime

import numpy as np
from sqlalchemy import Connection

from memlong_agent.errors import ConfigError, MemoryNotFoundError, StoreCorruptError
from memlong_agent.identity import Identity
from memlong_agent.kv import KVChunk, KVSpec
from memlong_agent.storage import reads, upkeep
from memlong_agent.storage.base import (
    ChunkAge,
    Event,
    LexicalHit,
    Matrix,
    Owner,
    OwnerStats,
    Pks,
    StoredChunk,
    StoredMemory,
)
from memlong_agent.storage.blobs import BlobStore
from memlong_agent.storage.contract import StorageBase
from memlong_agent.storage.database import Database
from memlong_agent.storage.kvfile import BlobRef, spec_from_json
from memlong_agent.storage.lexical import Lexical


class Reader(StorageBase):
    """Reading calls of :class:`~memlong_agent.storage.sql.Storage`."""

    def __init__(
        self,
        db: Database,
        blobs: BlobStore,
        lexical: Lexical,
        clock: Callable[[], datetime],
        grace_s: float,
    ) -> None:
        self._db = db
        self._blobs = blobs
        self._lexical = lexical
        self._clock = clock
        self._grace_s = grace_s
        self._known_spec: KVSpec | None = None

    def snapshot(self) -> AbstractContextManager[None]:
        """Inside, this thread's readings see one state; six transactions of a turn become one."""
        return self._db.snapshot()

    def encoding_identity(self) -> Identity | None:
        """What the bank's K/V depend on; None in a new bank."""
        return self._identity("encoding")

    def retrieval_identity(self) -> Identity | None:
        """What the bank's vectors depend on; None until an embedder has claimed it."""
        return self._identity("retrieval")

    def kv_spec(self) -> KVSpec | None:
        """Shape and dtype of the bank's K/V; None in a new bank."""
        if self._known_spec is None:
            with self._db.scope() as conn:
                text = reads.meta_value(conn, "kv_spec")
            self._known_spec = None if text is None else spec_from_json(text)
        return self._known_spec

    def get(self, owner: Owner, memory_id: str) -> StoredMemory:
        """One memory, expired or pending ones too. MemoryNotFoundError if the owner has none."""
        with self._db.scope() as conn:
            pk = reads.memory_pk(conn, self._owner_row(conn, owner)[0], memory_id)
            return reads.stored_memories(conn, [pk])[0]

    def list_memories(
        self,
        owner: Owner,
        session: str | None = None,
        limit: int | None = None,
        newest_first: bool = True,
        include_pending: bool = False,
        by_time: bool = True,
    ) -> list[StoredMemory]:
        """An owner's memories by time, or as they were first written; expired ones too."""
        with self._db.scope() as conn:
            pks = reads.memory_pks(
                conn,
                self._owner_row(conn, owner)[0],
                session=session,
                limit=limit,
                newest_first=newest_first,
                include_pending=include_pending,
                by_time=by_time,
            )
            return reads.stored_memories(conn, pks)

    def latest_exchange(self, owner: Owner, session: str) -> StoredMemory | None:
        """The finished memory of role `exchange` that was written last in a session, whatever the
        clock said."""
        with self._db.scope() as conn:
            pk = self._owner_row(conn, owner)[0]
            pks = reads.memory_pks(
                conn,
                pk,
                session=session,
                role="exchange",
                include_pending=False,
                limit=1,
                by_time=False,
            )
            return reads.stored_memories(conn, pks)[0] if pks else None

    def chunks(self, owner: Owner, pks: Sequence[int]) -> list[StoredChunk]:
        """The owner's chunks in the order asked, whatever their state; others are left out."""
        with self._db.scope() as conn:
            return reads.stored_chunks(conn, self._owner_row(conn, owner)[0], pks)

    def recallable(
        self, owner: Owner, pks: Sequence[int], *, turn: str | None = None
    ) -> list[StoredChunk]:
        """As :meth:`chunks`, without expired, superseded and withheld ones, and without what other
        turns than `turn` have pending."""
        with self._db.scope() as conn:
            pk = self._owner_row(conn, owner)[0]
            return reads.recallable_chunks(conn, pk, pks, now=self._clock(), turn=turn)

    def recallable_pks(
        self, owner: Owner, *, turn: str | None = None, session: str | None = None
    ) -> Pks:
        """Keys of all chunks that `turn` may recall (in one session, if given), ascending: (N,)."""
        with self._db.scope() as conn:
            pk = self._owner_row(conn, owner)[0]
            now = self._clock()
            found = reads.recallable_pks(conn, pk, now=now, turn=turn, session=session)
            return np.array(found, np.int64)

    def search(
        self,
        owner: Owner,
        text: str,
        *,
        turn: str | None = None,
        session: str | None = None,
        depth: int = 50,
    ) -> list[LexicalHit]:
        """The lexical arm: at most `depth` chunks that may be recalled, best first, ties by key."""
        with self._db.scope() as conn:
            pk, count, _ = self._owner_row(conn, owner)
            now = self._clock()
            found = self._lexical.search(conn, pk, count, text)
            hits: list[LexicalHit] = []
            look = max(1, depth)  # candidates that are looked up together
            for start in range(0, len(found.pks), look):
                part = slice(start, start + look)
                some = found.pks[part].tolist()
                live = {
                    chunk.pk: chunk
                    for chunk in reads.recallable_chunks(conn, pk, some, now=now, turn=turn)
                    if session is None or chunk.session == session
                }
                rows = zip(
                    some, found.scores[part].tolist(), found.rare[part].tolist(), strict=True
                )
                hits += [LexicalHit(live[key], *rest) for key, *rest in rows if key in live]
                if len(hits) >= depth:
                    break
            return hits[:depth]

    def chunk_ages(self, owner: Owner) -> list[ChunkAge]:
        """What eviction decides by, oldest memory first."""
        with self._db.scope() as conn:
            return reads.chunk_ages(conn, self._owner_row(conn, owner)[0])

    def tokens(self, owner: Owner) -> int:
        """Tokens of all the owner's chunks; one row is read."""
        with self._db.scope() as conn:
            return self._owner_row(conn, owner)[2]

    def vectors(
        self, owner: Owner, *, after_pk: int = 0, batch: int = 8192
    ) -> Iterator[tuple[Pks, Matrix]]:
        """All vectors with key > `after_pk` as ((n,), (n, E)), ascending, n <= `batch`.

        Each batch is a transaction of its own. To follow what changes meanwhile, ask for
        :meth:`last_event` first and replay :meth:`events_after` it afterwards.
        """
        while True:
            with self._db.scope() as conn:
                pk = self._owner_row(conn, owner)[0]
                pks, matrix = reads.vector_rows(conn, pk, pks=None, after_pk=after_pk, limit=batch)
            if not len(pks):
                return
            yield pks, matrix
            after_pk = int(pks[-1])

    def vectors_of(self, owner: Owner, pks: Sequence[int]) -> tuple[Pks, Matrix]:
        """Vectors of some chunks as ((n,), (n, E)), ascending by key; n may be less than asked."""
        with self._db.scope() as conn:
            return reads.vectors_of(conn, self._owner_row(conn, owner)[0], pks)

    def owner_key(self, owner: Owner) -> int:
        """The key of an owner, 0 for one who never wrote; one who was erased never has it again."""
        with self._db.scope() as conn:
            return self._owner_row(conn, owner)[0]

    def events_after(self, owner: Owner, seq: int) -> list[Event]:
        """What happened to the owner's chunks after event `seq`, in order."""
        with self._db.scope() as conn:
            return reads.events_after(conn, self._owner_row(conn, owner)[0], seq)

    def last_event(self, owner: Owner) -> int:
        """Number of the owner's newest event; 0 if there is none."""
        with self._db.scope() as conn:
            return reads.last_event(conn, self._owner_row(conn, owner)[0])

    def read_kv(self, pks: Sequence[int]) -> list[KVChunk]:
        """K/V of chunks in the order asked, each checked against its row, on the CPU (pinned where
        there is CUDA). The keys must come from a call that was given the owner.

        Raises:
            MemoryNotFoundError: a chunk has been forgotten meanwhile.
            StoreCorruptError: a file is missing or damaged; names it.
        """
        refs = self._refs(pks)
        if not refs:
            return []
        try:
            return self._blobs.read_many(self._claimed_spec(), refs)
        except StoreCorruptError:
            self._refs(pks)  # forgotten between the row and its file: no damage, says so instead
            raise

    def stats(self, owner: Owner | None = None) -> dict[Owner, OwnerStats]:
        """Memories, chunks, tokens and bytes by owner; reads one row a chunk."""
        with self._db.scope() as conn:
            return reads.stats(conn, owner)

    def verify(self) -> list[str]:
        """One sentence for each thing that is wrong with the bank; empty when all is well.

        Reads every K/V file. Files without rows count once they are older than the grace period.
        """
        spec = self.kv_spec()
        return upkeep.verify(self._db, self._blobs, self._lexical, spec, self._grace_s)

    def _refs(self, pks: Sequence[int]) -> list[BlobRef]:
        with self._db.scope() as conn:
            found = reads.blob_refs(conn, pks)
        gone = [pk for pk in pks if pk not in found]
        if gone:
            raise MemoryNotFoundError(f"Chunk {gone[0]} has been forgotten. Search again.")
        return [found[pk] for pk in pks]

    def _owner_row(self, conn: Connection, owner: Owner) -> tuple[int, int, int]:
        return self._db.once(("owner", owner), lambda: reads.owner_row(conn, owner))

    def _claimed_spec(self) -> KVSpec:
        spec = self.kv_spec()
        if spec is None:
            raise ConfigError(
                f"The bank at {self._db.place} belongs to no model yet. Call claim() first."
            )
        return spec

    def _identity(self, key: str) -> Identity | None:
        with self._db.scope() as conn:
            text = reads.meta_value(conn, key)
        return None if text is None else Identity.from_json(text)
