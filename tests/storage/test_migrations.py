"""Schemas over time: new, current, newer, older, somebody else's."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from bank_making import ALICE, MODEL, NOON, SPEC, memory
from sqlalchemy import Connection, inspect

from memlong_agent.errors import StoreError, StoreVersionError
from memlong_agent.storage import Storage, models, upgrade
from memlong_agent.storage.folder import make_folder
from memlong_agent.storage.migrations import (
    MIGRATIONS,
    Migration,
    applied,
    apply_pending,
    check,
    pending,
    prepare,
)
from memlong_agent.storage.sqlite import SqliteDatabase


def m003_add_mood(conn: Connection) -> None:
    conn.exec_driver_sql("ALTER TABLE memories ADD COLUMN mood TEXT NOT NULL DEFAULT 'glad'")


def m004_break(conn: Connection) -> None:
    conn.exec_driver_sql("ALTER TABLE memories ADD COLUMN half TEXT")
    conn.exec_driver_sql("ALTER TABLE absent ADD COLUMN half TEXT")


TODAY = ["m001_create", "m002_forget"]
LATER = (*MIGRATIONS, Migration(3, "m003_add_mood", m003_add_mood))
BROKEN = (*LATER, Migration(4, "m004_break", m004_break))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bank of today's schema with one memory."""
    with Storage.open(tmp_path / "bank") as bank:
        bank.claim(MODEL, SPEC)
        bank.add(ALICE, [memory("before")])
    return tmp_path / "bank"


def test_tables_and_migrations_agree() -> None:
    db = SqliteDatabase(None, 1.0)
    prepare(db, NOON)
    with db.scope() as conn:
        schema = inspect(conn)
        for table in models.metadata.tables.values():
            made = {column["name"]: column for column in schema.get_columns(table.name)}
            assert set(made) == {column.name for column in table.columns}
            for column in table.columns:
                # A primary key's NOT NULL is implied in SQLite and not shown for every table.
                assert column.primary_key or made[column.name]["nullable"] == column.nullable
            rows = conn.exec_driver_sql(f"PRAGMA foreign_key_list({table.name})")
            keys = {(row[3], row[2], row[6]) for row in rows}  # column, table, on delete
            declared = {
                (key.parent.name, key.column.table.name, key.ondelete) for key in table.foreign_keys
            }
            assert keys == declared
    db.close()


def test_looking_changes_nothing(folder: Path) -> None:
    db = SqliteDatabase(None, 1.0)
    with db.scope() as conn:
        assert applied(conn) == [] and pending(conn) == list(MIGRATIONS)
        check(db, conn)
        assert conn.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar() == 0
    db.close()
    db = SqliteDatabase(folder, 1.0)
    with db.scope() as conn:
        assert applied(conn) == TODAY and pending(conn) == []
        assert [step.name for step in pending(conn, LATER)] == ["m003_add_mood"]
    db.close()


def test_an_older_bank_is_refused_and_upgraded_on_demand(folder: Path) -> None:
    db = SqliteDatabase(folder, 1.0)
    with pytest.raises(StoreVersionError, match=r"m002_forget.*needs m003.*memlong upgrade"):
        prepare(db, NOON, known=LATER)
    assert prepare(db, NOON, upgrade=True, known=LATER) == ["m003_add_mood"]
    assert prepare(db, NOON, known=LATER) == []
    with db.scope() as conn:
        assert conn.exec_driver_sql("SELECT text, mood FROM memories").one() == ("before", "glad")
    db.close()


def test_a_newer_bank_is_refused(folder: Path) -> None:
    db = SqliteDatabase(folder, 1.0)
    prepare(db, NOON, upgrade=True, known=LATER)
    db.close()
    for use in (Storage.open, upgrade):
        with pytest.raises(StoreVersionError, match=r"up to m002_forget. Upgrade the package"):
            use(folder)


def test_a_step_and_its_record_are_one_transaction(folder: Path) -> None:
    db = SqliteDatabase(folder, 1.0)
    with pytest.raises(StoreError, match=r"no such table: absent.*report it"):
        prepare(db, NOON, upgrade=True, known=BROKEN)
    with db.scope(write=True) as conn:
        assert applied(conn) == TODAY
        columns = [row[1] for row in conn.exec_driver_sql("PRAGMA table_info(memories)")]
        assert "mood" not in columns and "half" not in columns
        assert apply_pending(conn, NOON, LATER) == ["m003_add_mood"]
    db.close()


def test_each_bank_has_its_own_secret(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        with Storage.open(tmp_path / name) as bank:
            bank.claim(MODEL, SPEC)
            bank.add(ALICE, [memory("the same text")])
        with sqlite3.connect(tmp_path / name / "bank.sqlite") as conn:
            digests |= {row[0] for row in conn.execute("SELECT text_digest FROM memories")}
        conn.close()
    assert len(digests) == 2


def test_recalls_of_before_learn_their_memory(tmp_path: Path) -> None:
    make_folder(tmp_path / "bank")
    db = SqliteDatabase(tmp_path / "bank", 1.0)
    prepare(db, NOON, known=MIGRATIONS[:1])
    with db.scope(write=True) as conn:
        conn.exec_driver_sql("INSERT INTO owners (tenant, kind, name) VALUES ('t', 'user', 'a')")
        conn.exec_driver_sql(
            "INSERT INTO memories (pk, id, owner_id, role, text, metadata, text_digest, created_at,"
            " recallable) VALUES (7, 'id', 1, 'user', 'said', '{}', '', 0, 1)"
        )
        conn.exec_driver_sql(
            "INSERT INTO chunks (pk, memory_pk, owner_id, ordinal, header, text, token_ids, tokens)"
            " VALUES (9, 7, 1, 0, '', 'said', x'01000000', 1)"
        )
        conn.exec_driver_sql(
            "INSERT INTO recalls (turn, owner_id, chunk_pk, rank, score, at)"
            " VALUES ('turn', 1, 9, 0, 0.5, 0)"
        )
    db.close()
    upgrade(tmp_path / "bank")
    with Storage.open(tmp_path / "bank") as bank, bank._db.scope() as conn:
        assert conn.exec_driver_sql("SELECT chunk_pk, memory_pk FROM recalls").one() == (9, 7)
        assert conn.exec_driver_sql("SELECT forgotten FROM owners").scalar() == 0
