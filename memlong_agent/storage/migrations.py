"""Numbered, append-only steps from an empty database to the schema of today.

In: a connection inside a write transaction. Out: tables, and one record a step in `migrations`,
committed with the step. A step that has shipped is never edited: banks that ran it exist.
A bank is upgraded when it is asked for, never in passing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select

from memlong_agent.errors import StoreError, StoreVersionError
from memlong_agent.storage import models
from memlong_agent.storage.database import Database
from memlong_agent.storage.faults import locked
from memlong_agent.storage.lexical import require_module

# "mlng": tells a bank from any other SQLite file; `file bank.sqlite` shows it too.
APPLICATION_ID = 0x6D6C6E67

_M001 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE migrations (
    number INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at INTEGER NOT NULL);
CREATE TABLE owners (
    pk INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, kind TEXT NOT NULL,
    name TEXT NOT NULL, chunks INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0,
    UNIQUE (tenant, kind, name));
CREATE TABLE sessions (
    pk INTEGER PRIMARY KEY AUTOINCREMENT,
    owner_id INTEGER NOT NULL REFERENCES owners (pk) ON DELETE CASCADE,
    external_id TEXT NOT NULL, UNIQUE (owner_id, external_id));
CREATE TABLE memories (
    pk INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
    owner_id INTEGER NOT NULL REFERENCES owners (pk) ON DELETE CASCADE,
    session_id INTEGER REFERENCES sessions (pk) ON DELETE SET NULL,
    role TEXT NOT NULL, text TEXT NOT NULL, messages TEXT, source TEXT, ordinal INTEGER,
    metadata TEXT NOT NULL, message_id TEXT, text_digest TEXT NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER,
    superseded_by INTEGER REFERENCES memories (pk) ON DELETE SET NULL,
    recallable INTEGER NOT NULL, pending TEXT, pending_at INTEGER);
CREATE INDEX memories_by_time ON memories (owner_id, created_at);
CREATE INDEX memories_by_session ON memories (session_id, created_at);
CREATE INDEX memories_superseding ON memories (superseded_by) WHERE superseded_by IS NOT NULL;
CREATE INDEX memories_pending ON memories (pending_at) WHERE pending IS NOT NULL;
CREATE UNIQUE INDEX memories_by_message ON memories (owner_id, ifnull(session_id, 0), message_id)
    WHERE message_id IS NOT NULL;
CREATE UNIQUE INDEX memories_by_section
    ON memories (owner_id, ifnull(source, ''), ifnull(ordinal, -1), text_digest)
    WHERE role = 'document';
CREATE TABLE chunks (
    pk INTEGER PRIMARY KEY AUTOINCREMENT,
    memory_pk INTEGER NOT NULL REFERENCES memories (pk) ON DELETE CASCADE,
    owner_id INTEGER NOT NULL REFERENCES owners (pk) ON DELETE CASCADE,
    ordinal INTEGER NOT NULL, header TEXT NOT NULL, text TEXT NOT NULL, token_ids BLOB NOT NULL,
    tokens INTEGER NOT NULL, counter INTEGER NOT NULL DEFAULT 0, last_recalled_at INTEGER,
    UNIQUE (memory_pk, ordinal));
CREATE INDEX chunks_by_owner ON chunks (owner_id);
CREATE TABLE blobs (
    chunk_pk INTEGER PRIMARY KEY REFERENCES chunks (pk) ON DELETE CASCADE,
    blob_id TEXT NOT NULL UNIQUE, nbytes INTEGER NOT NULL, checksum TEXT NOT NULL);
CREATE TABLE vectors (
    chunk_pk INTEGER PRIMARY KEY REFERENCES chunks (pk) ON DELETE CASCADE, vector BLOB NOT NULL);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    owner_id INTEGER NOT NULL REFERENCES owners (pk) ON DELETE CASCADE,
    chunk_pk INTEGER NOT NULL, op TEXT NOT NULL CHECK (op IN ('add', 'delete')));
CREATE INDEX events_by_owner ON events (owner_id, seq);
CREATE TABLE recalls (
    pk INTEGER PRIMARY KEY AUTOINCREMENT, turn TEXT NOT NULL,
    owner_id INTEGER NOT NULL REFERENCES owners (pk) ON DELETE CASCADE,
    chunk_pk INTEGER REFERENCES chunks (pk) ON DELETE SET NULL,
    rank INTEGER NOT NULL, score REAL NOT NULL, attention_mass REAL, at INTEGER NOT NULL,
    UNIQUE (owner_id, turn, chunk_pk));
CREATE INDEX recalls_by_chunk ON recalls (chunk_pk) WHERE chunk_pk IS NOT NULL;
CREATE TABLE items (
    pk INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, namespace TEXT NOT NULL,
    key TEXT NOT NULL, value TEXT NOT NULL, created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL, expires_at INTEGER, ttl_s REAL, vectors BLOB,
    owner_id INTEGER REFERENCES owners (pk) ON DELETE CASCADE,
    memory_pk INTEGER REFERENCES memories (pk) ON DELETE SET NULL,
    UNIQUE (tenant, namespace, key));
CREATE INDEX items_by_memory ON items (memory_pk) WHERE memory_pk IS NOT NULL;
CREATE INDEX items_by_owner ON items (owner_id) WHERE owner_id IS NOT NULL;
CREATE INDEX items_by_end ON items (tenant, expires_at) WHERE expires_at IS NOT NULL;
CREATE VIRTUAL TABLE lexical USING fts5(
    terms, detail='none', columnsize=0, tokenize="ascii tokenchars '_'");
"""


def m001_create(conn: Connection) -> None:
    """All tables, the bank's random id and the secret of its text digests."""
    for statement in filter(str.strip, _M001.split(";\n")):
        conn.exec_driver_sql(statement)
    conn.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
    rows = [
        {"key": "bank_id", "value": secrets.token_hex(16)},
        {"key": "secret", "value": secrets.token_hex(32)},
    ]
    conn.execute(insert(models.meta), rows)


_M002 = """
ALTER TABLE memories ADD COLUMN turn TEXT;
ALTER TABLE owners ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0;
ALTER TABLE recalls ADD COLUMN memory_pk INTEGER REFERENCES memories (pk) ON DELETE SET NULL;
UPDATE recalls SET memory_pk = (SELECT memory_pk FROM chunks WHERE chunks.pk = recalls.chunk_pk);
CREATE INDEX memories_by_turn ON memories (owner_id, turn) WHERE turn IS NOT NULL;
CREATE INDEX memories_by_end ON memories (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX recalls_by_memory ON recalls (memory_pk) WHERE memory_pk IS NOT NULL;
"""


def m002_forget(conn: Connection) -> None:
    """Which turn wrote an exchange, which memories a turn recalled, how often an owner forgot.

    Exchanges of before have no turn, so they are never among the mentions of what is forgotten.
    """
    for statement in filter(str.strip, _M002.split(";\n")):
        conn.exec_driver_sql(statement)


@dataclass(frozen=True, slots=True)
class Migration:
    """One step; `name` repeats the number so that the record reads on its own."""

    number: int
    name: str
    apply: Callable[[Connection], None]


MIGRATIONS: tuple[Migration, ...] = (
    Migration(1, "m001_create", m001_create),
    Migration(2, "m002_forget", m002_forget),
)


def applied(conn: Connection) -> list[str]:
    """Names of the steps this bank has run, in order; empty for an empty database. Read-only."""
    if not _has_tables(conn):
        return []
    names = select(models.migrations.c.name).order_by(models.migrations.c.number)
    return list(conn.scalars(names))


def pending(conn: Connection, known: Sequence[Migration] = MIGRATIONS) -> list[Migration]:
    """Steps this bank has not run, in order. Read-only."""
    done = set(applied(conn))
    return [step for step in known if step.name not in done]


def prepare(
    db: Database, now: datetime, *, upgrade: bool, known: Sequence[Migration] = MIGRATIONS
) -> list[str]:
    """Make a new bank, check an old one, upgrade it if asked; returns the steps that ran.

    Raises:
        StoreError, StoreVersionError: as :func:`check`; StoreError too if SQLite lacks FTS5.
    """
    # One process at a time: switching a new file to WAL fails at once, not after a timeout,
    # when another connection is there.
    with db.exclusive() as got:
        if not got:
            raise locked(db.place, db.timeout_s)
        with db.scope() as conn:
            require_module(conn, "fts5")
            check(conn, db.place, known, upgrade=upgrade)
            if not pending(conn, known):
                return []
        with db.scope(write=True) as conn:
            return apply_pending(conn, now, known)


def check(
    conn: Connection, place: str, known: Sequence[Migration] = MIGRATIONS, *, upgrade: bool = False
) -> None:
    """Refuse what this package cannot use as it is (or, with `upgrade`, cannot upgrade).

    Read-only; an empty database passes.

    Raises:
        StoreError: the SQLite file belongs to some other program.
        StoreVersionError: the bank is newer or older than this package.
    """
    mark = conn.exec_driver_sql("PRAGMA application_id").scalar()
    if mark != APPLICATION_ID and _has_tables(conn):
        raise StoreError(
            f"{place} is not a memory bank: its bank.sqlite belongs to another program. "
            "Choose another folder."
        )
    done, names = applied(conn), [step.name for step in known]
    newer = [name for name in done if name not in names]
    if newer:
        raise StoreVersionError(
            f"The bank at {place} has schema {newer[-1]}, this memlong-agent knows only up to "
            f"{names[-1]}. Upgrade the package: pip install --upgrade memlong-agent."
        )
    if done and len(done) < len(names) and not upgrade:
        raise StoreVersionError(
            f"The bank at {place} has schema {done[-1]}, this memlong-agent needs {names[-1]}. "
            f"Run (it makes a backup first): memlong upgrade --bank {place}"
        )


def apply_pending(
    conn: Connection, now: datetime, known: Sequence[Migration] = MIGRATIONS
) -> list[str]:
    """Run what is pending; the caller's transaction commits the steps with their records."""
    steps = pending(conn, known)
    for step in steps:
        step.apply(conn)
        record = {"number": step.number, "name": step.name, "applied_at": now}
        conn.execute(insert(models.migrations).values(record))
    return [step.name for step in steps]


def _has_tables(conn: Connection) -> bool:
    return bool(conn.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar())
