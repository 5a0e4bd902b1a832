"""An older bank is brought up to the schema of today: first a backup, then all steps or none.

In: a bank folder. Out: what was done, and where the backup is. K/V files are not copied: no step so
far touches them. Nothing here opens a bank for use, and nothing is ever downgraded.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from memlong_agent.errors import ConfigError, StoreCorruptError, StoreError
from memlong_agent.storage import faults
from memlong_agent.storage.base import utc_now
from memlong_agent.storage.migrations import (
    MIGRATIONS,
    Migration,
    applied,
    apply_pending,
    check,
    prepare,
)
from memlong_agent.storage.postgres import MARKER, PostgresDatabase
from memlong_agent.storage.sqlite import FILE, SqliteDatabase

_log = logging.getLogger("memlong_agent.storage")
_SUFFIX = ".bak"


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What an upgrade did."""

    before: str
    """The newest schema step that the bank had."""
    steps: tuple[str, ...]
    """The steps that ran, in order; none when the bank was up to date."""
    backup: Path | None
    """The database as it was before; None when nothing was done, and on PostgreSQL."""


def upgrade(
    path: Path | str,
    *,
    database: str | None = None,
    backed_up: bool = False,
    timeout_s: float = 30.0,
    clock: Callable[[], datetime] = utc_now,
    known: Sequence[Migration] = MIGRATIONS,
) -> Upgraded:
    """Bring the bank in a folder up to date; a crash leaves the old schema or the new one.

    The backup is `bank.sqlite.<schema>.bak`, readable by the owner only, and durable before the
    first step. It holds all remembered text as of now; therefore it is deleted as soon as anything
    is forgotten, changed or over. Of a `database` in PostgreSQL no backup can be made here: dump it
    first, and say so by `backed_up`.

    Raises:
        ConfigError: there is something to do in PostgreSQL, and it was not `backed_up`.
        StoreError: there is no bank; the disk is full.
        StoreVersionError: a newer memlong-agent wrote it.
        StoreLockedError: another process kept it busy past `timeout_s`.
    """
    folder = Path(path).expanduser().absolute()
    if not (folder / (FILE if database is None else MARKER)).is_file():
        raise StoreError(f"There is no bank at {folder}. Give the folder of a bank (--bank DIR).")
    if database is not None:
        with closing(PostgresDatabase(folder, database, timeout_s)) as server:
            return _on_server(server, clock(), known, backed_up)
    with closing(SqliteDatabase(folder, timeout_s)) as db, db.exclusive() as got:
        if not got:
            raise faults.locked(db.place, timeout_s)
        with db.scope() as conn:
            check(db, conn, known, upgrade=True)
            done = applied(conn)
        if not done:
            raise StoreError(f"The bank at {folder} is empty. Use it; there is nothing to upgrade.")
        if len(done) == len(known):
            return Upgraded(done[-1], (), None)
        # Writers wait from here on, so that the backup lacks nothing the steps are applied to.
        with db.scope(write=True) as conn:
            backup = _back_up(db, folder, done)
            steps = apply_pending(conn, clock(), known)
    return Upgraded(done[-1], tuple(steps), backup)


def _on_server(
    db: PostgresDatabase, now: datetime, known: Sequence[Migration], backed_up: bool
) -> Upgraded:
    with db.scope() as conn:
        check(db, conn, known, upgrade=True)
        done = applied(conn)
    if not done:
        raise db.foreign()
    if len(done) < len(known) and not backed_up:
        raise ConfigError(
            f"The rows of {db.place} are in PostgreSQL, where no backup can be made of them here. "
            f"{db.upgrading()}"
        )
    return Upgraded(done[-1], tuple(prepare(db, now, upgrade=True, known=known)), None)


def drop_backups(folder: Path, held: str = "what is forgotten now") -> list[Path]:
    """Delete the backups that upgrades left: what is forgotten must be gone from them too."""
    named = f"{FILE}.m[0-9]*{_SUFFIX}"  # as in _back_up: a copy that a user named is the user's
    found = [*folder.glob(named), *folder.glob(f"{named}.tmp*")]
    for path in sorted(found):
        with suppress(FileNotFoundError):
            path.unlink()
        _log.warning("The backup that an upgrade made was deleted (%s): it held %s.", path, held)
    if found:
        _sync(folder)
    return sorted(found)


def _back_up(db: SqliteDatabase, folder: Path, done: Sequence[str]) -> Path:
    """A checked, durable copy of the database as it was before this write transaction."""
    final = folder / f"{FILE}.{done[-1]}{_SUFFIX}"
    part = final.with_name(final.name + ".tmp")
    try:
        part.unlink(missing_ok=True)
        # Made by hand for its mode; SQLite opens an empty file as an empty database.
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        _copy(db, part)
        _sync(part)
        part.rename(final)
        _sync(folder)
    except BaseException as exc:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(exc, OSError):
            raise faults.from_os(exc, db.place) from exc
        raise
    return final


def _copy(db: SqliteDatabase, part: Path) -> None:
    with closing(db.engine.raw_connection()) as source, closing(sqlite3.connect(part)) as target:
        connection = source.driver_connection
        assert isinstance(connection, sqlite3.Connection)
        connection.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")  # one file, nothing beside it
        said = [line for (line,) in target.execute("PRAGMA integrity_check")]
    if said != ["ok"]:
        raise StoreCorruptError(
            f"bank.sqlite in {db.place} is damaged: {said[0]}. Nothing was changed. Restore it "
            "from a backup, or save what is left with: sqlite3 bank.sqlite .recover"
        )


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
