"""The word index of an encrypted bank: FTS5 in memory, so that no word of a text is on disk.

In: transactions of the bank. Out: the ranking that FTS5 on disk would give. It is built when the
bank is opened and then follows the outbox, which other processes write too; what a transaction
adds or removes reaches it with the first search after the commit.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, StaticPool, create_engine, func, select

from memlong_agent.errors import StoreCorruptError
from memlong_agent.storage import rows, seal
from memlong_agent.storage.batching import batches
from memlong_agent.storage.lexical import Fts5Lexical, Ranking
from memlong_agent.storage.models import chunks, events, memories

_log = logging.getLogger("memlong_agent.storage")
_BATCH = 2000
_TABLE = """CREATE VIRTUAL TABLE lexical USING fts5(
    terms, detail='none', columnsize=0, tokenize="ascii tokenchars '_'")"""
_TEXTS = select(
    chunks.c.pk, chunks.c.owner_id, chunks.c.ordinal, chunks.c.text, memories.c.id
).join(memories, memories.c.pk == chunks.c.memory_pk)


class RamLexical:
    """A :class:`~memlong_agent.storage.lexical.Lexical` in memory. Safe between threads and across
    `fork`."""

    def __init__(self, conn: Connection) -> None:
        """Index every chunk of the bank."""
        self._fts = Fts5Lexical()
        self._begin_anew()
        start = time.perf_counter()
        with self._following(conn) as words:
            count = words.exec_driver_sql("SELECT count(*) FROM lexical").scalar_one()
        self.built_s = time.perf_counter() - start
        """Seconds that building took."""
        _log.info("Word index of %d chunks built in memory in %.2f s.", count, self.built_s)

    def add(self, conn: Connection, owner_pk: int, texts: Sequence[tuple[int, str]]) -> None:
        """Nothing: what is not committed yet must not be found. The outbox tells of it."""

    def remove(self, conn: Connection, pks: Sequence[int]) -> None:
        """Nothing, as for :meth:`add`."""

    def search(self, conn: Connection, owner_pk: int, chunks: int, text: str) -> Ranking:
        with self._following(conn) as words:
            return self._fts.search(words, owner_pk, chunks, text)

    def disagreements(self, conn: Connection) -> list[str]:
        with self._following(conn) as words:
            held = {pk for (pk,) in words.exec_driver_sql("SELECT rowid FROM lexical")}
        wanted = set(conn.scalars(select(chunks.c.pk)))
        missing = [f"chunk {pk} is not in the word index" for pk in sorted(wanted - held)]
        gone = [f"the word index holds chunk {pk}, which is gone" for pk in sorted(held - wanted)]
        return missing + gone

    def empty(self, conn: Connection) -> None:
        """Nothing: it is made anew when the bank is opened."""

    def optimize(self, conn: Connection) -> None:
        """Let go of the words of removed chunks; in a transaction that has changed no chunk."""
        with self._following(conn) as words:
            self._fts.optimize(words)

    def close(self) -> None:
        """Let go of the words."""
        if self._pid == os.getpid():
            with self._lock:
                self._engine.dispose()

    def _begin_anew(self) -> None:
        self._pid, self._lock, self._seq = os.getpid(), threading.Lock(), 0
        self._engine = create_engine(
            "sqlite://",
            poolclass=StaticPool,
            hide_parameters=True,
            connect_args={"check_same_thread": False},
        )
        with self._engine.begin() as words:
            words.exec_driver_sql("PRAGMA temp_store = MEMORY")
            words.exec_driver_sql("PRAGMA secure_delete = ON")
            words.exec_driver_sql(_TABLE)

    @contextmanager
    def _following(self, conn: Connection) -> Iterator[Connection]:
        """The words of all that `conn` sees; an older snapshot than the last finds more."""
        if self._pid != os.getpid():  # neither the connection nor a held lock survives a fork
            self._begin_anew()
        with self._lock, self._engine.begin() as words:
            self._replay(conn, words)
            yield words

    def _replay(self, conn: Connection, words: Connection) -> None:
        last = conn.scalar(select(func.max(events.c.seq))) or 0
        if last <= self._seq:
            return
        if self._seq == 0:
            for some in _all_texts(conn):
                self._add(conn, words, some)
        else:
            newer = select(events.c.chunk_pk).where(events.c.seq > self._seq).distinct()
            # Whatever was touched becomes what the bank has of it now.
            for batch in batches(conn.scalars(newer)):
                self._fts.remove(words, batch)
                touched = _TEXTS.where(chunks.c.pk.in_(batch)).order_by(chunks.c.owner_id)
                self._add(conn, words, conn.execute(touched).all())
        self._seq = last

    def _add(self, conn: Connection, words: Connection, found: Sequence[Any]) -> None:
        cipher = seal.of(conn)
        for owner_pk, group in groupby(found, key=lambda row: row.owner_id):
            self._fts.add(words, owner_pk, [(row.pk, _text(cipher, row)) for row in group])


def _text(cipher: seal.Cipher, row: Any) -> str:
    """The text of a chunk; none if it is damaged, so that one memory does not close the bank."""
    try:
        text: str = row.text
        return cipher.open_text(text, "chunks.text", rows.chunk_place(row.id, row.ordinal))
    except StoreCorruptError as exc:
        _log.warning("A memory has no words in the word index: %s", exc)
        return ""


def _all_texts(conn: Connection) -> Iterator[Sequence[Any]]:
    after = 0
    query = _TEXTS.order_by(chunks.c.pk).limit(_BATCH)
    while found := conn.execute(query.where(chunks.c.pk > after)).all():
        yield found
        after = found[-1].pk
