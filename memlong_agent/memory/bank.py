"""The memory bank: what was said and read, with its K/V, under its owner.

In: drafts, whose text is cut and encoded already, and questions as text. Out: memories, and chunks
with their K/V. It joins storage, vector index and embedder, and knows no model, no prompt and no
SQL; when to write is decided upstairs.
"""

from __future__ import annotations

import builtins
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from memlong_agent.closing import Closing
from memlong_agent.config import Scope, Settings
from memlong_agent.embedding import Embedder, resolve_embedder
from memlong_agent.errors import ConfigError, MemoryNotFoundError
from memlong_agent.identity import Identity
from memlong_agent.index import Backend
from memlong_agent.kv import KVSpec
from memlong_agent.memory.carriers import (
    Draft,
    Hit,
    Written,
    memory_record,
    recall_record,
    user_said,
)
from memlong_agent.memory.forgetting import ForgettingBank, left_for_later
from memlong_agent.memory.recall import Question, widened
from memlong_agent.memory.repair import Repairs
from memlong_agent.records import Memory, Recall
from memlong_agent.storage import (
    Key,
    Owner,
    OwnerStats,
    RecallMark,
    Storage,
    StoredChunk,
    StoredMemory,
)
from memlong_agent.storage.base import utc_now

_log = logging.getLogger("memlong_agent.memory")
Mark = tuple[int, int, float, float | None]
"""What a turn recalled: chunk key, rank, score, attention mass."""
_TRIES = 3  # a chunk can be forgotten between its ranking and its reading


class MemoryBank(ForgettingBank, Closing):
    """All memories of one model, of many owners. Safe between threads and processes.

    Every call may raise StoreLockedError (another process kept the bank busy) and StoreError.
    """

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        encoding: Identity,
        spec: KVSpec,
        embedder: str | Embedder = "auto",
        settings: Settings,
        database: str | None = None,
        index_backend: Backend = "auto",
        timeout_s: float = 30.0,
        clock: Callable[[], datetime] = utc_now,
        key: Key | None = None,
    ) -> Self:
        """Open the bank in a folder, or make one there; `":memory:"` keeps nothing on disk.

        Args:
            encoding, spec: What the K/V of the model depend on; their shape and dtype.
            embedder: A name, an embedder, `"auto"` or `"lexical"` (words only, no vectors).
            settings: `capacity_tokens` and `eviction` are used.
            database: URL of a PostgreSQL database for the rows; the folder then holds K/V.
            index_backend: `"faiss"`, `"torch"`, or `"auto"` for the first that is installed.
            timeout_s, clock, key: How long to wait for others; "now", aware; see Storage.open.

        Raises:
            IncompatibleMemoryError: another model or embedder wrote the bank; named.
            ConfigError: the embedder is unknown or not installed.
            StoreError, StoreVersionError: not a bank that this package can use.
        """
        storage = Storage.open(path, database=database, timeout_s=timeout_s, clock=clock, key=key)
        try:
            storage.claim(encoding, spec)
            chosen = resolve_embedder(embedder, storage.retrieval_identity())
            storage.claim_retrieval(chosen.identity)
            return cls(storage, chosen, settings, index_backend, clock)
        except BaseException:
            storage.close()
            raise

    def close(self) -> None:
        """Let go of files and connections; a bank in memory is gone."""
        self._storage.close()

    def add(self, owner: Owner, drafts: Sequence[Draft], *, turn: str | None = None) -> Written:
        """Write memories, all or none, then evict if the owner is above capacity.

        A memory whose (session, message_id), or for documents (source, ordinal, text), is there
        already is not written twice. What the running `turn` writes is not evicted by this call.

        Raises:
            ConfigError: a draft that cannot be stored; nothing is written.
        """
        stored = self._storage.add(owner, self._embedded(drafts))
        mine = {pk for memory in stored for pk in memory.chunk_pks} if turn is not None else ()
        return Written([memory_record(each) for each in stored], self._evict(owner, mine))

    def finish_turn(
        self, owner: Owner, turn: str, draft: Draft | None, recalled: Sequence[Mark] = ()
    ) -> Written:
        """Replace what the turn has pending by its finished exchange; with None only drop it.

        The exchange, and what its turn recalled, is durable before anything pending goes. If it has
        no message_id and its user text is that of the session's latest exchange, it replaces that
        exchange and keeps its id.
        """
        if draft is None:
            self.discard_turn(owner, turn)
            self.mark(owner, turn, recalled)
            return Written([])
        finished = replace(draft, pending=None, turn=turn)
        stored = self._put_exchange(owner, finished, recalled)
        with left_for_later("Text that a finished turn had pending"):
            self._storage.discard(owner, turn)
        return Written([memory_record(stored)], self._evict(owner, stored.chunk_pks))

    def discard_turn(self, owner: Owner, turn: str) -> int:
        """Forget what a failed turn has pending; returns how many memories."""
        return self._storage.discard(owner, turn)

    def recall(
        self,
        owner: Owner,
        query: str,
        *,
        top_k: int,
        generated: str = "",
        scope: Scope = "owner",
        session: str | None = None,
        turn: str | None = None,
        absent: Callable[[StoredChunk], bool] | None = None,
    ) -> builtins.list[Hit]:
        """The chunks that answer `query` best, in the order of time (created_at, memory, ordinal).

        Args:
            query: The user's new text; of a long one the embedder reads the last part. Blank, with
                nothing generated, it recalls nothing.
            top_k: Most chunks, 1 or more.
            generated: The newest text of the reply so far, searched for with the query.
            scope: `owner` looks at all the owner's memories, `session` only at those of `session`.
            turn: The running turn; it recalls what it has pending itself.
            absent: Says of a chunk whether it is absent from the prompt; the others are left out.

        Raises:
            ConfigError: top_k below 1, or scope `session` without a session.
            StoreCorruptError: a K/V file is missing or damaged; names it.
        """
        if scope == "session" and session is None:
            raise ConfigError("scope='session' needs a session. Pass its id, or use scope='owner'.")
        narrowed = session if scope == "session" else None
        question = Question(owner, query, generated, narrowed, turn, absent)
        for _ in range(_TRIES - 1):
            with suppress(MemoryNotFoundError):  # forgotten since it was found: look again
                return self._recalled(question, top_k)
        return self._recalled(question, top_k)

    def mark(self, owner: Owner, turn: str, recalled: Sequence[Mark]) -> None:
        """Note what a turn recalled that writes nothing.

        A chunk's counter rises once a turn, however often it is marked.
        """
        if recalled:
            self._storage.record_recalls(owner, turn, [RecallMark(*each) for each in recalled])

    def search(
        self, owner: Owner, query: str, *, top_k: int, session: str | None = None
    ) -> builtins.list[Recall]:
        """The ranking of :meth:`recall`, best first, without K/V; counts nothing."""
        found = self._finder.find(Question(owner, query, session=session), top_k)
        return [recall_record(each.chunk, each.score) for each in found]

    def get(self, owner: Owner, memory_id: str) -> Memory:
        """One memory. MemoryNotFoundError if the owner has none with this id."""
        return memory_record(self._storage.get(owner, memory_id))

    def list(
        self,
        owner: Owner,
        session: str | None = None,
        limit: int | None = None,
        *,
        newest_first: bool = True,
    ) -> builtins.list[Memory]:
        """An owner's memories by time; expired ones too, but none of a running turn."""
        stored = self._storage.list_memories(owner, session, limit, newest_first=newest_first)
        return [memory_record(each) for each in stored]

    def tail(
        self, owner: Owner, session: str, limit: int
    ) -> builtins.list[builtins.list[dict[str, Any]]]:
        """Messages of the session's last `limit` exchanges, in the order they were written.

        Expired, superseded and withheld exchanges are left out, and those without messages.
        """
        if limit < 1:
            return []
        last = widened(
            lambda depth: self._storage.list_memories(owner, session, depth, by_time=False),
            self._resumable,
            limit,
        )
        return [exchange.messages or [] for exchange in reversed(last)]

    def latest_exchange(self, owner: Owner, session: str) -> StoredMemory | None:
        """The finished exchange that was written last in a session."""
        return self._storage.latest_exchange(owner, session)

    def stats(self, owner: Owner | None = None) -> dict[Owner, OwnerStats]:
        """Memories, chunks, tokens and bytes by owner."""
        return self._storage.stats(owner)

    def identities(self) -> tuple[Identity, Identity]:
        """What K/V (model, tokenizer, ...) and vectors (embedder) of this bank depend on."""
        encoding = self._storage.encoding_identity()
        return encoding or Identity({}), self._embedder.identity

    @property
    def repairs(self) -> Repairs:
        """The bank's condition, and what can be made anew."""
        return Repairs(self._storage, self._embedder)

    def verify(self) -> builtins.list[str]:
        """One sentence for each thing that is wrong with the bank; reads every K/V file."""
        return self._storage.verify()

    def _put_exchange(self, owner: Owner, draft: Draft, recalled: Sequence[Mark]) -> StoredMemory:
        memory, marks = self._embedded([draft])[0], [RecallMark(*each) for each in recalled]
        repeated = self._repeated(owner, draft)
        if repeated is not None:
            with suppress(MemoryNotFoundError):  # forgotten since we looked: written anew
                return self._storage.replace(owner, repeated, memory, recalled=marks)
        return self._storage.add(owner, [memory], recalled=marks)[0]

    def _repeated(self, owner: Owner, draft: Draft) -> str | None:
        """Id of the session's latest exchange, if the user said the same in it."""
        if draft.session is None or draft.message_id is not None or draft.role != "exchange":
            return None
        said = user_said(draft.messages)
        latest = self._storage.latest_exchange(owner, draft.session) if said else None
        same = latest is not None and user_said(latest.messages) == said
        return latest.id if latest is not None and same else None

    def _recalled(self, question: Question, top_k: int) -> builtins.list[Hit]:
        found = self._finder.find(question, top_k)
        kv = self._storage.read_kv([each.chunk.pk for each in found])
        hits = [
            Hit(each.chunk, each.score, own, rank, each.log_prior)
            for rank, (each, own) in enumerate(zip(found, kv, strict=True))
        ]
        return sorted(hits, key=_time)

    def _resumable(self, memories: Sequence[StoredMemory]) -> builtins.list[StoredMemory]:
        now = self._clock()
        return [
            each
            for each in memories
            if each.role == "exchange"
            and each.messages
            and each.recallable
            and each.superseded_by is None
            and (each.expires_at is None or each.expires_at > now)
        ]


def _time(hit: Hit) -> tuple[datetime, int, int]:
    return hit.chunk.created_at, hit.chunk.memory_pk, hit.chunk.ordinal
