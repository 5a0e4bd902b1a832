"""Rows on their way into an archive or out of one: a private database that nobody else sees.

In: memories as lines of JSON with their chunks, and what hangs on them. Out: the same, in either
order, however many there are. The file has no name from its first byte on, so whatever ends the
process ends it too. Knows no bank and no ZIP.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memlong_agent.closing import Closing
from memlong_agent.storage.kvfile import BlobRef

_FILES = 1000
_TABLES = """
CREATE TABLE memories (
    place INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, rank INTEGER NOT NULL UNIQUE,
    kind TEXT NOT NULL, name TEXT NOT NULL, line TEXT NOT NULL, pk INTEGER,
    present INTEGER NOT NULL DEFAULT 0);
CREATE TABLE chunks (
    place INTEGER NOT NULL, ordinal INTEGER NOT NULL, tokens INTEGER NOT NULL,
    token_ids BLOB, vector BLOB, kv_at INTEGER, kv_check INTEGER,
    blob_id TEXT, nbytes INTEGER, checksum TEXT,
    PRIMARY KEY (place, ordinal)) WITHOUT ROWID;
CREATE TABLE taken (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE notes (
    what TEXT NOT NULL, memory_id TEXT, other_id TEXT, line TEXT NOT NULL, vectors BLOB);
CREATE INDEX notes_by_memory ON notes (memory_id);
CREATE INDEX notes_by_other ON notes (other_id) WHERE other_id IS NOT NULL;
CREATE TABLE newer (id TEXT PRIMARY KEY, other_id TEXT) WITHOUT ROWID;
"""

_LOOKS = 64  # 2**64 memories


@dataclass(frozen=True, slots=True)
class Row:
    """One memory; `line` is its JSON."""

    place: int
    id: str
    rank: int
    kind: str
    name: str
    line: str
    pk: int | None = None
    """Its key in the bank that it is restored into."""
    present: bool = False
    """Whether it is there already."""


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """One chunk: what its memory's JSON does not hold."""

    ordinal: int
    tokens: int
    token_ids: bytes = b""  # (C,) <u4
    vector: bytes | None = None  # (E,) <f4
    kv_at: int = 0
    """Offset of its K/V in the archive."""
    kv_check: int = 0
    """xxh3_64 of its K/V."""
    ref: BlobRef | None = None
    """Its file in the bank."""


@dataclass(frozen=True, slots=True)
class Note:
    """One line about memories: an item, a recall, or which memory is superseded by which."""

    what: str
    memory_id: str | None
    other_id: str | None
    line: str
    vectors: bytes | None = None


class Scratch(Closing):
    """Rows by place. Raises sqlite3.Error; a broken UNIQUE is sqlite3.IntegrityError."""

    def __init__(self, folder: Path) -> None:
        self._db = _nameless(folder)
        for statement in _TABLES.split(";\n"):
            self._db.execute(statement)
        self._db.execute("BEGIN")

    def close(self) -> None:
        """Let go of the nameless file, which is then gone."""
        self._db.close()

    def add(self, row: Row, chunks: list[ChunkRow]) -> None:
        values = (row.place, row.id, row.rank, row.kind, row.name, row.line)
        self._db.execute("INSERT INTO memories VALUES (?, ?, ?, ?, ?, ?, NULL, 0)", values)
        self._add_chunks(row.place, chunks)

    def replace(self, place: int, line: str, chunks: list[ChunkRow]) -> None:
        """Give a memory another line and other chunks."""
        self._db.execute("UPDATE memories SET line = ? WHERE place = ?", (line, place))
        self._db.execute("DELETE FROM chunks WHERE place = ?", (place,))
        self._add_chunks(place, chunks)

    def _add_chunks(self, place: int, chunks: list[ChunkRow]) -> None:
        rows = [(place, *_chunk_values(each)) for each in chunks]
        marks = ", ".join("?" * 10)
        self._db.executemany(f"INSERT INTO chunks VALUES ({marks})", rows)

    def take_key(self, key: str) -> None:
        """Note that a unique key is used; sqlite3.IntegrityError if it was."""
        self._db.execute("INSERT INTO taken VALUES (?)", (key,))

    def note(self, note: Note) -> None:
        values = (note.what, note.memory_id, note.other_id, note.line, note.vectors)
        self._db.execute("INSERT INTO notes VALUES (?, ?, ?, ?, ?)", values)

    def set_pk(self, place: int, pk: int, *, present: bool) -> None:
        change = "UPDATE memories SET pk = ?, present = ? WHERE place = ?"
        self._db.execute(change, (pk, present, place))

    def leave_out(self, place: int, memory_id: str) -> None:
        """Drop a memory with all that hangs on it."""
        self._db.execute("DELETE FROM memories WHERE place = ?", (place,))
        self._db.execute("DELETE FROM chunks WHERE place = ?", (place,))
        gone = "DELETE FROM notes WHERE memory_id = ? OR other_id = ?"
        self._db.execute(gone, (memory_id, memory_id))

    def rows(self, *, by_rank: bool = False) -> Iterator[Row]:
        """All memories, by place or as they were written. Memories may be changed meanwhile."""
        key = "rank" if by_rank else "place"
        query = f"SELECT * FROM memories WHERE {key} > ? ORDER BY {key} LIMIT 100"
        after = -1
        while found := [Row(*values) for values in self._db.execute(query, (after,))]:
            yield from found
            after = getattr(found[-1], key)

    def row(self, memory_id: str) -> Row | None:
        found = self._db.execute("SELECT * FROM memories WHERE id = ?", (memory_id,)).fetchone()
        return None if found is None else Row(*found)

    def chunks(self, place: int) -> list[ChunkRow]:
        """The chunks of a memory by ordinal."""
        query = "SELECT * FROM chunks WHERE place = ? ORDER BY ordinal"
        return [_chunk(values) for values in self._db.execute(query, (place,))]

    def blob_ids(self) -> Iterator[list[str]]:
        """The files that chunks have in the bank, some at once. Nothing may change meanwhile."""
        found = self._db.execute("SELECT blob_id FROM chunks WHERE blob_id IS NOT NULL")
        while some := found.fetchmany(_FILES):
            yield [blob_id for (blob_id,) in some]

    def has_chunk(self, place: int, ordinal: int) -> bool:
        query = "SELECT 1 FROM chunks WHERE place = ? AND ordinal = ?"
        return self._db.execute(query, (place, ordinal)).fetchone() is not None

    def notes(self, what: str) -> Iterator[Note]:
        """All notes of one sort, in the order in which they came."""
        query = "SELECT rowid, * FROM notes WHERE what = ? AND rowid > ? ORDER BY rowid LIMIT 100"
        after = 0
        while found := self._db.execute(query, (what, after)).fetchall():
            for _, *values in found:
                yield Note(*values)
            after = found[-1][0]

    def change_vectors(self, change: Callable[[str], bytes | None]) -> None:
        """Give every item that has vectors others, made of its line."""
        query = "SELECT rowid, line FROM notes WHERE vectors NOTNULL AND rowid > ? LIMIT 100"
        after = 0
        while found := self._db.execute(query, (after,)).fetchall():
            rows = [(change(line), rowid) for rowid, line in found]
            self._db.executemany("UPDATE notes SET vectors = ? WHERE rowid = ?", rows)
            after = found[-1][0]

    def has_circle(self) -> bool:
        """Whether memories supersede each other in a circle."""
        fill = "INSERT INTO newer SELECT memory_id, other_id FROM notes WHERE what = 'superseded'"
        self._db.execute(fill)
        # Each look is at least twice as far ahead as the one before: a line of memories, however
        # long, comes to its end, a circle never.
        look = "UPDATE newer SET other_id = (SELECT other_id FROM newer far WHERE far.id = "
        look += "newer.other_id) WHERE other_id NOTNULL"
        looks = range(_LOOKS)
        return all(self._db.execute(look).rowcount for _ in looks)

    def counts(self) -> dict[str, int]:
        """How much there is, by name."""
        counted = {"memories": "count(*) FROM memories", "chunks": "count(*) FROM chunks"}
        counted["tokens"] = "coalesce(sum(tokens), 0) FROM chunks"
        for what in ("items", "recalls", "superseded"):
            counted[what] = f"count(*) FROM notes WHERE what = '{what}'"
        return {
            name: int(self._db.execute(f"SELECT {query}").fetchone()[0])
            for name, query in counted.items()
        }


def _chunk_values(chunk: ChunkRow) -> tuple[Any, ...]:
    ref = chunk.ref
    place = (None, None, None) if ref is None else (ref.blob_id, ref.nbytes, ref.checksum)
    signed = int.from_bytes(chunk.kv_check.to_bytes(8, "little"), "little", signed=True)
    values = (chunk.ordinal, chunk.tokens, chunk.token_ids, chunk.vector, chunk.kv_at, signed)
    return (*values, *place)


def _chunk(values: tuple[Any, ...]) -> ChunkRow:
    _, ordinal, tokens, token_ids, vector, kv_at, signed, blob_id, nbytes, checksum = values
    check = int.from_bytes(signed.to_bytes(8, "little", signed=True), "little")
    ref = None if blob_id is None else BlobRef(blob_id, tokens, nbytes, checksum)
    return ChunkRow(ordinal, tokens, token_ids, vector, kv_at, check, ref)


def _nameless(folder: Path) -> sqlite3.Connection:
    """A database in a file of this folder, or of the system's if it is read-only."""
    try:
        fd, name = tempfile.mkstemp(prefix=".memlong-", dir=folder)
    except OSError:
        fd, name = tempfile.mkstemp(prefix=".memlong-")
    os.close(fd)
    try:
        db = sqlite3.connect(name, isolation_level=None)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        db.execute("CREATE TABLE opened (at INTEGER)")  # opens and locks the file while it is there
        return db
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)
