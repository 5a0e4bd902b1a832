"""The word index on PostgreSQL: a plain table of (term, chunk), ranked as FTS5 is.

Every chunk also stands under the empty term, which no word is: so a chunk without words is told
from one that is missing here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sqlalchemy import Connection

from memlong_agent.storage.base import Pks
from memlong_agent.storage.lexical import RankedLexical, owned, terms

_EVERY = ""
_ADD = "INSERT INTO postings (term, chunk_pk) SELECT * FROM unnest(%s::text[], %s::bigint[])"
_COUNT = """
    SELECT asked.term, count(*) FROM unnest(%s::text[]) AS asked (term),
        LATERAL (SELECT 1 FROM postings WHERE postings.term = asked.term LIMIT %s) AS found
    GROUP BY asked.term"""
_HELD = """
    SELECT pk, owner_id, text, array_agg(term) FROM chunks JOIN postings ON chunk_pk = pk
    GROUP BY pk"""
_FIND = "SELECT term, chunk_pk FROM postings WHERE term = ANY(%s)"


class PostingsLexical(RankedLexical):
    """Rows in the table `postings`."""

    def add(self, conn: Connection, owner_pk: int, texts: Sequence[tuple[int, str]]) -> None:
        found = [
            (term, pk)
            for pk, text in texts
            for term in [_EVERY, *dict.fromkeys(owned(owner_pk, terms(text)))]
        ]
        conn.exec_driver_sql(_ADD, ([term for term, _ in found], [pk for _, pk in found]))

    def remove(self, conn: Connection, pks: Sequence[int]) -> None:
        conn.exec_driver_sql("DELETE FROM postings WHERE chunk_pk = ANY(%s)", (list(pks),))

    def disagreements(self, conn: Connection) -> list[str]:
        here = "SELECT chunk_pk FROM postings WHERE term = ''"
        unindexed = conn.exec_driver_sql(f"SELECT pk FROM chunks EXCEPT {here} ORDER BY 1")
        left_over = "SELECT chunk_pk FROM postings EXCEPT SELECT pk FROM chunks ORDER BY 1"
        return (
            [f"chunk {pk} is not in the word index" for (pk,) in unindexed]
            + [
                f"the word index holds chunk {pk}, which is gone"
                for (pk,) in conn.exec_driver_sql(left_over)
            ]
            + [f"the word index holds other words of chunk {pk}" for pk in self._changed(conn)]
        )

    def _changed(self, conn: Connection) -> list[int]:
        return [
            pk
            for pk, owner, text, held in conn.exec_driver_sql(_HELD)
            if set(held) != {_EVERY, *owned(owner, terms(text))}
        ]

    def empty(self, conn: Connection) -> None:
        conn.exec_driver_sql("DELETE FROM postings")

    def optimize(self, conn: Connection) -> None:
        """Nothing to do: a purge rewrites the table with the others."""

    def drop(self, conn: Connection) -> None:
        conn.exec_driver_sql("DROP TABLE postings")

    def _counts(self, conn: Connection, words: Sequence[str], most: int) -> dict[str, int]:
        rows = conn.exec_driver_sql(_COUNT, (list(words), most))
        return {word: count for word, count in rows}

    def _postings(self, conn: Connection, words: Sequence[str]) -> list[Pks]:
        found: dict[str, list[int]] = {word: [] for word in words}
        for word, pk in conn.exec_driver_sql(_FIND, (list(words),)):
            found[word].append(pk)
        return [np.array(pks, np.int64) for pks in found.values()]
