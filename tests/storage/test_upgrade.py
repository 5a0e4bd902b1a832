"""`upgrade`: a backup first, then all steps or none; never back."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from bank_copies import copied_bank
from bank_making import ALICE, MODEL, SPEC, memory
from sqlalchemy import Connection

from memlong_agent.errors import StoreCorruptError, StoreError, StoreLockedError, StoreVersionError
from memlong_agent.storage import Storage
from memlong_agent.storage.migrations import MIGRATIONS, Migration
from memlong_agent.storage.upgrade import upgrade

HERE = Path(__file__).parent
OLD = HERE.parent / "assets" / "banks" / "0.1.0" / "bank"
ROWS = "SELECT id, text, metadata, created_at FROM memories ORDER BY pk"


def next_step(conn: Connection) -> None:
    conn.exec_driver_sql("ALTER TABLE memories ADD COLUMN mood TEXT NOT NULL DEFAULT 'glad'")


def failing_step(conn: Connection) -> None:
    conn.exec_driver_sql("ALTER TABLE memories ADD COLUMN half TEXT")
    conn.exec_driver_sql("ALTER TABLE absent ADD COLUMN half TEXT")


NEXT = Migration(len(MIGRATIONS) + 1, "m999_next", next_step)
LATER = (*MIGRATIONS, NEXT)


def rows(database: Path) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as conn:
        return list(conn.execute(ROWS))


def steps(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as conn:
        return [name for (name,) in conn.execute("SELECT name FROM migrations ORDER BY number")]


WRITTEN = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the bank that 0.1.0 wrote."""
    return copied_bank(OLD, tmp_path / "bank")


def test_the_backup_is_the_bank_as_it_was(old: Path) -> None:
    before, files = rows(old / "bank.sqlite"), sorted((old / "kv").rglob("*"))
    done = upgrade(old)
    assert done.before == "m001_create" and done.steps[0] == "m002_forget"
    assert done.backup == old / "bank.sqlite.m001_create.bak"
    assert stat.S_IMODE(done.backup.stat().st_mode) == 0o600
    assert rows(done.backup) == before == rows(old / "bank.sqlite")
    assert steps(done.backup) == ["m001_create"]
    assert steps(old / "bank.sqlite") == [step.name for step in MIGRATIONS]
    assert sorted((old / "kv").rglob("*")) == files
    assert not list(old.glob("*.tmp*"))


def test_a_backup_put_back_is_the_old_bank(old: Path) -> None:
    backup = upgrade(old).backup
    assert backup is not None
    for name in ("bank.sqlite", "bank.sqlite-wal", "bank.sqlite-shm"):
        (old / name).unlink(missing_ok=True)
    backup.rename(old / "bank.sqlite")
    with pytest.raises(StoreVersionError, match="memlong upgrade"):
        Storage.open(old)
    upgrade(old)
    with Storage.open(old) as bank:
        assert bank.verify() == []


def test_a_bank_of_today_is_left_alone(old: Path) -> None:
    upgrade(old)
    backups = {path: path.stat().st_mtime_ns for path in old.glob("*.bak")}
    done = upgrade(old)
    assert (done.steps, done.backup) == ((), None)
    assert {path: path.stat().st_mtime_ns for path in old.glob("*.bak")} == backups


def test_a_newer_bank_is_refused_and_stays(old: Path) -> None:
    upgrade(old, known=LATER)
    before = steps(old / "bank.sqlite")
    with pytest.raises(StoreVersionError, match=r"m999_next.*pip install --upgrade"):
        upgrade(old)
    assert steps(old / "bank.sqlite") == before and "m999_next" in before


def test_a_step_that_fails_changes_nothing(old: Path) -> None:
    broken = (*LATER, Migration(NEXT.number + 1, "m999_failing", failing_step))
    with pytest.raises(StoreError, match="no such table"):
        upgrade(old, known=broken)
    assert steps(old / "bank.sqlite") == ["m001_create"]
    upgrade(old)


def test_what_is_no_bank_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no bank at"):
        upgrade(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    (tmp_path / "other").mkdir()
    with closing(sqlite3.connect(tmp_path / "other" / "bank.sqlite")) as conn:
        conn.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(StoreError, match="belongs to another program"):
        upgrade(tmp_path / "other")


def test_a_damaged_bank_is_not_touched(old: Path) -> None:
    with closing(sqlite3.connect(old / "bank.sqlite")) as conn:
        (page_size,) = conn.execute("PRAGMA page_size").fetchone()
        (page,) = conn.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'memories_by_time'"
        ).fetchone()
    data = bytearray((old / "bank.sqlite").read_bytes())
    data[(page - 1) * page_size : (page - 1) * page_size + 200] = b"\xff" * 200
    (old / "bank.sqlite").write_bytes(data)
    with pytest.raises(StoreCorruptError, match=r"is damaged.*backup"):
        upgrade(old)
    assert (old / "bank.sqlite").read_bytes() == data
    assert not list(old.glob("*.bak*"))


def test_without_room_for_the_backup_nothing_is_done(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="Free space"):
        upgrade(old)
    assert steps(old / "bank.sqlite") == ["m001_create"] and not list(old.glob("*.bak*"))


def test_it_waits_for_writers_and_gives_up(old: Path) -> None:
    with closing(sqlite3.connect(old / "bank.sqlite", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreLockedError):
            upgrade(old, timeout_s=0.1)
    assert steps(old / "bank.sqlite") == ["m001_create"]


def test_forgetting_deletes_the_backup_and_says_so(
    old: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backup = upgrade(old).backup
    assert backup is not None
    mine = old / "bank.sqlite.before-the-move.bak"
    mine.write_bytes(b"a copy of the user's own")
    mine.chmod(0o600)
    with Storage.open(old, clock=lambda: WRITTEN) as bank:  # before anything in it expires
        owner = next(iter(bank.stats()))
        assert backup.exists() and caplog.messages == []
        bank.delete(owner, [bank.list_memories(owner)[0].id])
        (said,) = caplog.messages
        assert "backup that an upgrade made was deleted" in said and str(backup) in said
        assert list(old.glob("*.bak*")) == [mine] and bank.verify() == []


def test_what_expires_deletes_the_backup_when_the_bank_is_opened(
    old: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upgrade(old)
    with closing(sqlite3.connect(old / "bank.sqlite")) as conn, conn:
        conn.execute("UPDATE memories SET expires_at = 1 WHERE pk = 1")
    with Storage.open(old) as bank:
        assert bank.verify() == []
    assert not list(old.glob("*.bak*")) and "what is forgotten now" in caplog.text


def test_a_kill_leaves_the_old_schema_or_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "upgrade_children.py")]
    paths = {"PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"}
    seen: dict[str, set[str]] = {}
    expected = rows(copied_bank(OLD, tmp_path / "untouched") / "bank.sqlite")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | paths, text=True
    ) as helper:
        assert helper.stdin is not None and helper.stdout is not None

        def killed_at(boundary: int) -> tuple[Path, list[str]]:
            bank = copied_bank(OLD, tmp_path / f"{boundary}")
            print(json.dumps({"bank": str(bank), "boundary": boundary}), file=helper.stdin)
            assert helper.stdin and helper.stdout
            helper.stdin.flush()
            return bank, json.loads(helper.stdout.readline())

        _, names = killed_at(10_000)
        first = {name: place for place, name in reversed([*enumerate(names, 1)])}
        every = range(1, len(names) + 1)
        for boundary in every if os.environ.get("MEMLONG_TESTS") == "full" else first.values():
            bank, reached = killed_at(boundary)
            found = steps(bank / "bank.sqlite")
            assert found in (["m001_create"], [step.name for step in MIGRATIONS])
            seen.setdefault(found[-1], set()).add(reached[-1])
            if found == ["m001_create"]:
                upgrade(bank)
            with Storage.open(bank, clock=lambda: WRITTEN) as opened:
                assert opened.verify() == []
            assert rows(bank / "bank.sqlite") == expected
            assert rows(bank / "bank.sqlite.m001_create.bak") == expected
        helper.stdin.close()
    assert {"after rename", "before commit", "after a statement"} <= seen["m001_create"]
    assert seen[MIGRATIONS[-1].name] == {"after all"}


def test_a_bank_with_memories_of_today_goes_on_after_the_next_step(tmp_path: Path) -> None:
    with Storage.open(tmp_path / "bank") as bank:
        bank.claim(MODEL, SPEC)
        bank.add(ALICE, [memory("before")])
    assert upgrade(tmp_path / "bank", known=LATER).steps == ("m999_next",)
