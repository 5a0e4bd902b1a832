"""Opening, locking and failing: the border between SQLite and our errors."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_making import ALICE, BOB, MODEL, SPEC, kv_of, memory
from sqlalchemy import event

from memlong_agent.errors import ConfigError, StoreCorruptError, StoreError, StoreLockedError
from memlong_agent.storage import Storage, faults, sqlite
from memlong_agent.storage.sqlite import SqliteDatabase, has_wal_reset_bug


def test_a_bank_lives_on_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er?#%20" / "bank"
    with Storage.open(str(folder)) as bank:
        bank.claim(MODEL, SPEC)
        (stored,) = bank.add(ALICE, [memory("a")])
    with Storage.open(folder) as bank:
        bank.claim(MODEL, SPEC)
        assert bank.get(ALICE, stored.id) == stored
        assert torch.equal(bank.read_kv(stored.chunk_pks)[0].keys, kv_of("a", 5).keys)
    assert {path.name for path in folder.iterdir()} == {"bank.sqlite", "bank.lock", "kv"}


def test_an_empty_folder_becomes_private(tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    folder.mkdir(mode=0o755)
    Storage.open(folder).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_is_no_bank_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StoreError, match="is a file, a bank is a folder"):
        Storage.open(file)
    with pytest.raises(StoreError, match=r"holds 'file' and no bank.sqlite"):
        Storage.open(tmp_path)
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(StoreError, match="cannot be used"):
        Storage.open(file / "below")
    garbage = tmp_path / "garbage"
    garbage.mkdir()
    (garbage / "bank.sqlite").write_bytes(os.urandom(8192))
    with pytest.raises(StoreError, match=r"not an SQLite database. Choose another"):
        Storage.open(garbage)
    other = tmp_path / "other"
    other.mkdir()
    with closing(sqlite3.connect(other / "bank.sqlite")) as conn:
        conn.execute("CREATE TABLE meta (key, value)")
    with pytest.raises(StoreError, match="belongs to another program"):
        Storage.open(other)
    with closing(sqlite3.connect(other / "bank.sqlite")) as conn:
        assert [row[0] for row in conn.execute("SELECT name FROM sqlite_master")] == ["meta"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a read-only file system")
def test_a_read_only_place_is_named() -> None:
    with pytest.raises(StoreError, match=r"/proc/memlong.*(Check the path|permission)"):
        Storage.open("/proc/memlong/bank")


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    with closing(sqlite3.connect(folder / "bank.sqlite", isolation_level=None)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        yield


def test_a_busy_bank_gives_up_after_the_timeout(tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    with Storage.open(folder, timeout_s=0.1) as bank:
        bank.claim(MODEL, SPEC)
        (stored,) = bank.add(ALICE, [memory("a")])
        with write_lock(folder):
            with pytest.raises(StoreLockedError, match=r"busy for 0.1 s.*timeout_s"):
                bank.add(ALICE, [memory("b")])
            assert bank.list_memories(ALICE) == [stored]  # readers do not wait
        assert len(list((folder / "kv").rglob("*.safetensors"))) == 1
        with bank._db.exclusive() as got:
            assert got
            with pytest.raises(StoreLockedError):
                Storage.open(folder, timeout_s=0.1)
            with pytest.raises(StoreLockedError):
                bank.purge()


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    with Storage.open(tmp_path / "bank", timeout_s=10) as bank:
        bank.claim(MODEL, SPEC)
        with write_lock(tmp_path / "bank"):
            thread = threading.Thread(target=bank.add, args=(ALICE, [memory("b")]))
            thread.start()
            thread.join(0.2)
            assert thread.is_alive()
        thread.join()
        assert len(bank.list_memories(ALICE)) == 1


def test_a_new_bank_waits_for_whoever_makes_it(tmp_path: Path) -> None:
    """SQLite itself refuses a switch to WAL beside another one at once, whatever the timeout."""
    maker = SqliteDatabase(tmp_path, 1.0)
    with ThreadPoolExecutor(1) as pool:
        with maker.exclusive(), closing(sqlite3.connect(tmp_path / "bank.sqlite")) as other:
            other.execute("BEGIN IMMEDIATE")  # as far as the other one is in its switch
            opened = pool.submit(lambda: Storage.open(tmp_path, timeout_s=10.0).close())
            assert not wait([opened], 0.3).done
        opened.result()
    maker.close()


def test_a_snapshot_sees_one_state_and_begins_once(folder_bank: Storage) -> None:
    folder_bank.add(ALICE, [memory("a")])
    begun: list[str] = []
    event.listen(folder_bank._db.engine, "begin", lambda conn: begun.append("begin"))
    with folder_bank.snapshot(), folder_bank.snapshot():
        before = folder_bank.list_memories(ALICE)
        thread = threading.Thread(target=folder_bank.add, args=(ALICE, [memory("b")]))
        thread.start()
        thread.join()
        assert folder_bank.list_memories(ALICE) == before and len(before) == 1
    assert len(folder_bank.list_memories(ALICE)) == 2
    assert len(begun) == 3  # the snapshot, the write, the last list


def test_a_snapshot_looks_an_owner_up_once(folder_bank: Storage) -> None:
    folder_bank.add(ALICE, [memory("a")])
    asked: list[str] = []
    db = folder_bank._db.engine
    event.listen(db, "before_cursor_execute", lambda *args: asked.append(args[2]))
    with folder_bank.snapshot():
        before = folder_bank.tokens(ALICE)
        with folder_bank.snapshot():
            assert len(folder_bank.recallable_pks(ALICE)) == 1
        assert folder_bank.tokens(ALICE) == before > folder_bank.tokens(BOB)
        assert sum("FROM owners" in text for text in asked) == 2  # Alice's, and Bob's
        folder_bank.add(ALICE, [memory("b")])
        assert folder_bank.tokens(ALICE) == before  # the state that it began with
    assert folder_bank.tokens(ALICE) == 2 * before


def test_a_database_that_cannot_grow_says_so_and_takes_nothing(tmp_path: Path) -> None:
    with Storage.open(tmp_path / "bank") as bank:
        bank.claim(MODEL, SPEC)
        bank._db.engine.dispose()

        def limit(connection: Any, _: object) -> None:
            connection.execute("PRAGMA max_page_count = 1").fetchall()

        event.listen(bank._db.engine, "connect", limit)
        with pytest.raises(StoreError, match=r"full. Free space on this disk"):
            bank.add(ALICE, [memory("a" * 500_000)])
        assert bank.list_memories(ALICE) == []
        assert list((tmp_path / "bank" / "kv").rglob("*.safetensors")) == []


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    with Storage.open(folder) as bank:
        bank.claim(MODEL, SPEC)
        bank.add(ALICE, [memory("a" * 9000)])
    data = bytearray((folder / "bank.sqlite").read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    (folder / "bank.sqlite").write_bytes(data)
    with pytest.raises(StoreCorruptError, match=r"bank\.sqlite in .* is damaged.*backup"):
        Storage.open(folder)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "Free space"),
        (errno.EDQUOT, "Free space"),
        (errno.EROFS, "write permission"),
        (errno.EACCES, "write permission"),
        (errno.EIO, "Check the path and the disk"),
    ],
)
def test_system_errors_end_with_what_to_do(code: int, advice: str) -> None:
    said = faults.from_os(OSError(code, os.strerror(code), "file"), "/bank")
    assert type(said) is StoreError
    assert "/bank" in str(said) and "(file)" in str(said) and advice in str(said)


@pytest.mark.parametrize(
    ("code", "kind", "advice"),
    [
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StoreLockedError, "timeout_s"),
        (sqlite3.SQLITE_LOCKED, StoreLockedError, "timeout_s"),
        (sqlite3.SQLITE_FULL, StoreError, "Free space"),
        (sqlite3.SQLITE_NOTADB, StoreError, "Choose another folder"),
        (sqlite3.SQLITE_CORRUPT_VTAB, StoreCorruptError, "backup"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, StoreError, "write permission"),
        (sqlite3.SQLITE_CANTOPEN, StoreError, "write permission"),
        (sqlite3.SQLITE_ERROR, StoreError, "report it"),
        (sqlite3.SQLITE_IOERR_FSYNC, StoreError, "Check the disk"),
    ],
)
def test_sql_errors_end_with_what_to_do(code: int, kind: type[StoreError], advice: str) -> None:
    error = sqlite3.OperationalError("said SQLite")
    error.sqlite_errorcode = code
    said = faults.from_sql(error, "/bank", 3.0)
    assert type(said) is kind and "/bank" in str(said) and advice in str(said)


def test_a_scope_commits_or_rolls_back(tmp_path: Path) -> None:
    (tmp_path / "kv").mkdir()
    db = SqliteDatabase(tmp_path, 1.0)

    def rows() -> list[int]:
        with db.scope() as conn:
            return [row[0] for row in conn.exec_driver_sql("SELECT x FROM t ORDER BY x")]

    with db.scope(write=True) as conn:
        conn.exec_driver_sql("CREATE TABLE t (x)")
        conn.exec_driver_sql("INSERT INTO t VALUES (1)")
    with pytest.raises(KeyboardInterrupt), db.scope(write=True) as conn:
        conn.exec_driver_sql("INSERT INTO t VALUES (2)")
        raise KeyboardInterrupt
    assert rows() == [1]
    db.close()


def test_connections_are_set_as_promised(folder_bank: Storage) -> None:
    expected = {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "secure_delete": 1,
        "wal_autocheckpoint": 0,
        "busy_timeout": 5000,
        "temp_store": 2,
    }
    with folder_bank._db.scope() as conn:
        for name, value in expected.items():
            assert conn.exec_driver_sql(f"PRAGMA {name}").scalar() == value


def test_the_log_is_moved_into_the_bank_when_it_is_long(tmp_path: Path) -> None:
    with Storage.open(tmp_path / "bank") as bank:
        bank.claim(MODEL, SPEC)
        for i in range(12):
            bank.add(ALICE, [memory(str(i), text="x" * 1_000_000)])
        assert (tmp_path / "bank" / "bank.sqlite-wal").stat().st_size < 9 << 20
        assert (tmp_path / "bank" / "bank.sqlite").stat().st_size > 8 << 20
        with bank._db.exclusive() as got:  # somebody else's checkpoint is not waited for
            assert got
            for i in range(6):
                bank.add(ALICE, [memory(str(i), text="x" * 1_000_000)])
        assert len(bank.list_memories(ALICE)) == 18


def test_the_sqlite_bug_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 1))
    sqlite._warned.clear()
    with caplog.at_level(logging.INFO, "memlong_agent.storage"):
        for name in ("a", "b"):
            Storage.open(tmp_path / name).close()
    assert [record.message.count("WAL-reset bug") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("version", "has_it"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 0), False),
    ],
)
def test_which_sqlite_has_the_bug(version: tuple[int, ...], has_it: bool) -> None:
    assert has_wal_reset_bug(version) is has_it


def test_remembered_text_is_in_no_traceback(folder_bank: Storage) -> None:
    folder_bank.add(ALICE, [memory("a", id="0" * 32)])
    with pytest.raises(ConfigError, match="collides") as raised:
        folder_bank.add(BOB, [memory("my secret canary", id="0" * 32)])
    shown = "".join(map(str, (raised.value, raised.value.__cause__)))
    assert "INSERT" in shown and "canary" not in shown
