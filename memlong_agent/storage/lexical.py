"""The lexical arm: which chunks share rare words with a question.

In: chunk texts under their primary keys, one owner at a time. Out: ranked keys.
It knows no vectors and no memories; whether a hit may be recalled is for reads.py to say.

Every term is stored behind its owner (`o12xvelora`), so one owner's postings and document
frequencies cannot touch another's, whatever anybody writes. The table lives in the bank's own
database and changes in the transaction of the rows.

FTS5 deletes by writing tombstones: the words of a forgotten chunk stay in older segments until
those merge. `optimize` merges all of them at once (0.6 s at 1e5 chunks); `Storage.purge()` asks
for it. FTS5's own `secure-delete`, from SQLite 3.42 on, would be faster, but a bank that used it
once is closed to every older SQLite: one way serves all of them.
"""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from memlong_agent.storage.base import Pks
from memlong_agent.storage.batching import batches

_WORDS = re.compile(r"\w+")
# Han and kana are written without spaces: a run of them becomes overlapping pairs.
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")
_MAX_TERM = 64  # characters; longer runs are keys and base64, equal heads suffice
_MAX_TERMS = 6
_MAX_SHARE = 0.05  # of the owner's chunks: above it a word says nothing
_RARE_SHARE = 0.005
_FIRST_LOOK = 100  # six words below this are enough: 200-word questions take half the time
_HOLDS = """lexical MATCH '"' || term || '"'"""
_MAX_POSTINGS = 10_000  # rows read per query (about 1 ms); the rarest term is always read


@dataclass(frozen=True, slots=True)
class Ranking:
    """Every candidate, best first; ties by key."""

    pks: Pks  # (N,)
    scores: NDArray[np.float64]  # (N,)
    rare: NDArray[np.bool_]  # (N,)


class Lexical(Protocol):
    """A word index inside the bank's transactions."""

    def add(self, conn: Connection, owner_pk: int, texts: Sequence[tuple[int, str]]) -> None:
        """Index (chunk pk, text) pairs of one owner."""
        ...

    def remove(self, conn: Connection, pks: Sequence[int]) -> None: ...

    def search(self, conn: Connection, owner_pk: int, chunks: int, text: str) -> Ranking:
        """Rank the owner's chunks for `text`; `chunks` = how many the owner has."""
        ...

    def disagreements(self, conn: Connection) -> list[str]:
        """One phrase for each chunk that is missing here, or here without a chunk."""
        ...

    def empty(self, conn: Connection) -> None:
        """Remove every chunk; the caller adds all of them again."""
        ...

    def optimize(self, conn: Connection) -> None:
        """Leave no word of a removed chunk in the index's pages; in a transaction of its own."""
        ...


class LexicalTable(Lexical, Protocol):
    """A word index in a table of the bank's own database."""

    def drop(self, conn: Connection) -> None:
        """Remove the table for good: an encrypted bank keeps no words."""
        ...


def terms(text: str) -> list[str]:
    """Words of a text in order: folded case, no accents, no single ASCII letters."""
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in decomposed if not unicodedata.category(c).startswith("M"))
    found: list[str] = []
    for word in _WORDS.findall(text.casefold()):
        if not word.isascii():
            found += _split_unspaced(word)
        elif len(word) > 1 or word.isdigit():
            found.append(word[:_MAX_TERM])
    return found


def _split_unspaced(word: str) -> list[str]:
    runs = _UNSPACED.findall(word)
    pairs = [run[i : i + 2] for run in runs for i in range(max(1, len(run) - 1))]
    return pairs + [part[:_MAX_TERM] for part in _UNSPACED.sub(" ", word).split()]


class RankedLexical(ABC):
    """What every word index shares: which terms of a question count, and the order of the hits."""

    def search(self, conn: Connection, owner_pk: int, chunks: int, text: str) -> Ranking:
        kept = self._kept(conn, owner_pk, chunks, text)
        postings = self._postings(conn, [term for term, _ in kept])
        if not postings:
            return Ranking(np.empty(0, np.int64), np.empty(0), np.empty(0, np.bool_))
        sizes = [len(found) for found in postings]
        frequencies = np.array([df for _, df in kept])
        rare_up_to = max(2, _RARE_SHARE * chunks)
        pks, place = np.unique(np.concatenate(postings), return_inverse=True)
        weights = np.repeat(np.log1p(chunks / frequencies), sizes)
        scores = np.bincount(place, weights=weights).astype(np.float64)
        rare = np.bincount(place, weights=np.repeat(frequencies <= rare_up_to, sizes)) > 0
        order = np.lexsort((pks, -scores))
        return Ranking(pks[order], scores[order], rare[order])

    def _kept(
        self, conn: Connection, owner_pk: int, chunks: int, text: str
    ) -> list[tuple[str, int]]:
        """At most six (term, document frequency), rarest first."""
        most = max(3, int(_MAX_SHARE * chunks))
        words = list(dict.fromkeys(owned(owner_pk, terms(text))))
        found: list[tuple[int, str]] = []
        for limit in sorted({min(most, _FIRST_LOOK), most}):
            counts = self._counts(conn, words, limit + 1)
            found += [(df, word) for word, df in counts.items() if 0 < df <= limit]
            words = [word for word, df in counts.items() if df > limit]
            if len(found) >= _MAX_TERMS:
                break
        kept: list[tuple[str, int]] = []
        budget = _MAX_POSTINGS
        for df, term in sorted(found)[:_MAX_TERMS]:
            budget -= df
            if kept and budget < 0:
                break
            kept.append((term, df))
        return kept

    @abstractmethod
    def _counts(self, conn: Connection, words: Sequence[str], most: int) -> dict[str, int]:
        """In how many chunks each word is, counted up to `most`; it may leave out those in none."""

    @abstractmethod
    def _postings(self, conn: Connection, words: Sequence[str]) -> list[Pks]:
        """Keys of the chunks that hold each word, in the order of `words`."""


class Fts5Lexical(RankedLexical):
    """FTS5, for folder banks and for memory."""

    def add(self, conn: Connection, owner_pk: int, texts: Sequence[tuple[int, str]]) -> None:
        rows = [(pk, " ".join(owned(owner_pk, terms(text)))) for pk, text in texts]
        conn.exec_driver_sql("INSERT INTO lexical (rowid, terms) VALUES (?, ?)", rows)

    def remove(self, conn: Connection, pks: Sequence[int]) -> None:
        if pks:
            conn.exec_driver_sql("DELETE FROM lexical WHERE rowid = ?", [(pk,) for pk in pks])

    def disagreements(self, conn: Connection) -> list[str]:
        unindexed = "SELECT pk FROM chunks EXCEPT SELECT rowid FROM lexical"
        left_over = "SELECT rowid FROM lexical EXCEPT SELECT pk FROM chunks"
        return (
            [f"chunk {pk} is not in the word index" for (pk,) in conn.exec_driver_sql(unindexed)]
            + [
                f"the word index holds chunk {pk}, which is gone"
                for (pk,) in conn.exec_driver_sql(left_over)
            ]
            + [f"the word index holds other words of chunk {pk}" for pk in self._changed(conn)]
        )

    def _changed(self, conn: Connection) -> list[int]:
        both = "SELECT pk, owner_id, text, terms FROM chunks JOIN lexical ON lexical.rowid = pk"
        return [
            pk
            for pk, owner, text, held in conn.exec_driver_sql(both)
            if held != " ".join(owned(owner, terms(text)))
        ]

    def empty(self, conn: Connection) -> None:
        conn.exec_driver_sql("DELETE FROM lexical")

    def optimize(self, conn: Connection) -> None:
        conn.exec_driver_sql("INSERT INTO lexical (lexical) VALUES ('optimize')")

    def drop(self, conn: Connection) -> None:
        conn.exec_driver_sql("DROP TABLE lexical")

    def _counts(self, conn: Connection, words: Sequence[str], most: int) -> dict[str, int]:
        # Counting stops at the limit: 0.15 ms at most, where an fts5vocab lookup walks the whole
        # posting list (1.2 ms for a word that is in all of 1e5 chunks).
        some = f"SELECT 1 FROM lexical WHERE {_HOLDS} LIMIT {most}"
        return dict(_for_each(conn, words, f"SELECT count(*) FROM ({some})"))

    def _postings(self, conn: Connection, words: Sequence[str]) -> list[Pks]:
        # As one text of numbers: a quarter of the time that thousands of rows take in Python.
        query = f"SELECT group_concat(rowid, ' ') FROM lexical WHERE {_HOLDS}"
        found = dict(_for_each(conn, words, query))
        return [np.fromstring(found[word] or "", np.int64, sep=" ") for word in words]


def _for_each(conn: Connection, words: Sequence[str], query: str) -> Iterator[tuple[str, Any]]:
    """Each word with what `query`, which may name it `term`, selects for it."""
    for some in batches(words):
        asked = f"WITH asked (term) AS (VALUES {', '.join(['(?)'] * len(some))})"
        found = conn.exec_driver_sql(f"{asked} SELECT term, ({query}) FROM asked", tuple(some))
        yield from map(tuple, found)


def owned(owner_pk: int, words: Iterable[str]) -> list[str]:
    """Terms as they are stored: behind their owner."""
    return [f"o{owner_pk}x{word}" for word in words]
