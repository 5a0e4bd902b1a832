"""SQLite: a file in the bank's folder, or memory.

bank.sqlite is never opened by hand: closing any descriptor of a file drops all POSIX locks that
this process holds on it, SQLite's included.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    NullPool,
    Pool,
    QueuePool,
    StaticPool,
    create_engine,
    event,
)

from memlong_agent.errors import StoreError
from memlong_agent.storage import faults, scrub
from memlong_agent.storage.database import Contents, Database
from memlong_agent.storage.lexical import Fts5Lexical, LexicalTable

_log = logging.getLogger("memlong_agent.storage")
# "mlng": tells a bank from any other SQLite file; `file bank.sqlite` shows it too.
APPLICATION_ID = 0x6D6C6E67
FILE = "bank.sqlite"
_WAL_BYTES = 4 << 20
_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",  # a delete must not come back after its file is gone
    "foreign_keys = ON",
    "secure_delete = ON",  # what is forgotten is overwritten with zeros
    "temp_store = MEMORY",  # no remembered text in temporary files
    "mmap_size = 0",  # page faults are 5-8x slower than reads on a cold disk
    "wal_autocheckpoint = 0",  # see SqliteDatabase.checkpoint
    f"journal_size_limit = {_WAL_BYTES}",
)
_warned = threading.Event()


class SqliteDatabase(Database):
    """`bank.sqlite` in a folder, in WAL mode; with None a database in memory.

    Writers begin IMMEDIATE: a deferred transaction that reads and then writes fails at once when
    another process wrote in between, whatever the timeout.
    """

    def __init__(self, folder: Path | None, timeout_s: float) -> None:
        place = ":memory:" if folder is None else str(folder)
        super().__init__(_engine(folder, timeout_s), folder, place, timeout_s)
        self._scrub_key = None if folder is None else scrub.enter(folder)
        self._unsure = False
        _log_wal_reset_bug()

    def lexical(self) -> LexicalTable:
        return Fts5Lexical()

    def require(self, conn: Connection) -> None:
        require_module(conn, "fts5")

    def contents(self, conn: Connection) -> Contents:
        if conn.exec_driver_sql("PRAGMA application_id").scalar() == APPLICATION_ID:
            return "bank"
        tables = conn.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar()
        return "other" if tables else "nothing"

    def foreign(self) -> StoreError:
        return StoreError(
            f"{self.place} is not a memory bank: its {FILE} belongs to another program. "
            "Choose another folder."
        )

    def upgrading(self) -> str:
        return f"Run (it makes a backup first): memlong upgrade {self.options}"

    def bind(self, bank_id: str, *, new: bool) -> None:
        """Nothing to do: the rows lie in the folder."""

    def settled(self) -> AbstractContextManager[Connection]:
        if self._unsure:
            self._overwrite()
        return self.scope()

    def purge(self) -> None:
        """Empty the write-ahead log, and zero what is unused in the pages; see scrub.py."""
        if self.folder is None:
            return
        deadline = time.monotonic() + self.timeout_s
        with self.exclusive() as got:
            while not (got and self._scrubbed()):
                if not got or time.monotonic() >= deadline:
                    raise faults.locked(self.place, self.timeout_s)

    def close(self) -> None:
        super().close()
        if self._scrub_key is not None:
            scrub.leave(self._scrub_key)
            self._scrub_key = None

    def compact(self) -> None:
        # A page may hold copies of cells that were moved to another one: only VACUUM leaves none.
        with self._translated(), self._turn:
            raw = self._engine.raw_connection()
            try:
                raw.cursor().execute("VACUUM")
            finally:
                raw.close()
        self.purge()

    def problems(self, conn: Connection) -> list[str]:
        said = [str(line) for (line,) in conn.exec_driver_sql("PRAGMA quick_check")]
        found = [f"{FILE}: {line}" for line in said if line != "ok"]
        for row in conn.exec_driver_sql("PRAGMA foreign_key_check"):
            found.append(f"{row[0]} row {row[1]} refers to a row of {row[2]} that is gone")
        return found

    def checkpoint(self, *, truncate: bool = False) -> None:
        """Move the write-ahead log into the database; with `truncate`, leave the log empty.

        SQLite before 3.51.3 can lose pages when two checkpoints overlap, in one process or in two,
        so none is automatic and each holds the lock. Without `truncate` a busy lock means that
        somebody else is at it, and nothing is done.
        """
        with self.exclusive(wait=truncate) as got:
            if not got:
                if truncate:
                    raise faults.locked(self.place, self.timeout_s)
                return
            if self._moved("TRUNCATE" if truncate else "PASSIVE") and truncate:
                raise faults.locked(self.place, self.timeout_s)

    def _moved(self, mode: str) -> bool:
        """Checkpoint, under the lock; whether others were in the way."""
        with self._translated(), self._turn:
            raw = self._engine.raw_connection()
            try:
                return bool(raw.cursor().execute(f"PRAGMA wal_checkpoint({mode})").fetchone()[0])
            finally:
                raw.close()

    def _scrubbed(self) -> bool:
        """One try; False if somebody wrote between the checkpoint and the write lock."""
        if self._moved("TRUNCATE"):
            raise faults.locked(self.place, self.timeout_s)
        assert self.folder is not None and self._scrub_key is not None
        # A connection of its own, without pages in its cache; and every other one drops its cached
        # pages, with their old bytes, when it sees the commit.
        alone = _engine(self.folder, self.timeout_s, NullPool)
        with self._translated(), alone.connect() as conn:
            conn.exec_driver_sql("BEGIN IMMEDIATE")
            if self._wal_bytes():
                return False
            try:
                whole = scrub.zero_gaps(scrub.descriptor(self._scrub_key, self.folder / FILE))
            except OSError as exc:
                raise faults.from_os(exc, self.place) from exc
            times = conn.exec_driver_sql("PRAGMA user_version").scalar_one()
            conn.exec_driver_sql(f"PRAGMA user_version = {(times + 1) % (1 << 31)}")
            conn.commit()
        if not whole:
            raise StoreError(
                f"{FILE} in {self.place} is too large for bytes of what was forgotten to be found "
                f"in it. Close the bank everywhere, then run: sqlite3 {FILE} VACUUM"
            )
        return True

    def _failed(self, exc: StoreError) -> None:
        if faults.is_read_only(exc):
            # A connection that could not open its shared memory for writing (no descriptors left,
            # say) stays like that: the next try begins with a new one.
            self._engine.dispose()
        if self.folder is None or not faults.is_disk(exc):
            return
        self._unsure = True
        try:
            self._overwrite()
        except StoreError:
            raise StoreError(
                f"{exc} Whether this write was kept will show when the bank is opened again."
            ) from exc

    def _overwrite(self) -> None:
        """Write over a transaction whose commit failed.

        When only its last sync failed it lies whole in the log behind the last page that counts,
        and the recovery after a crash would take it for committed, long after the caller was told
        that it was not and its files were removed.
        """
        with self._translated(), self._turn, self._engine.connect() as conn, conn.begin():
            self._begin(conn, True)
            version = conn.exec_driver_sql("PRAGMA user_version").scalar()
            conn.exec_driver_sql(f"PRAGMA user_version = {version}")  # writes page 1 in any case
        self._unsure = False

    def _begin(self, conn: Connection, write: bool) -> None:
        conn.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    def _wrote(self) -> None:
        if self._wal_bytes() > _WAL_BYTES:
            try:
                self.checkpoint()
            except StoreError as exc:  # the transaction is committed: this may wait for the next
                _log.warning("The write-ahead log could not be moved into the bank: %s", exc)

    def _wal_bytes(self) -> int:
        if self.folder is None:
            return 0
        with suppress(FileNotFoundError):
            return os.stat(self.folder / f"{FILE}-wal").st_size
        return 0


def require_module(conn: Connection, name: str) -> None:
    """StoreError unless this SQLite has the virtual table module `name`."""
    query = "SELECT 1 FROM pragma_module_list WHERE name = ?"
    if conn.exec_driver_sql(query, (name,)).first() is None:
        raise StoreError(
            f"This Python's SQLite was built without {name}, which the word index needs. "
            "Use a Python from python.org, conda or uv, whose SQLite has it."
        )


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """SQLite 3.7.0 to 3.51.2, but for the two branches that got the fix (sqlite.org/wal.html)."""
    fixed = version[:2] == (3, 44) and version >= (3, 44, 6)
    fixed = fixed or (version[:2] == (3, 50) and version >= (3, 50, 7))
    return (3, 7, 0) <= version < (3, 51, 3) and not fixed


def _log_wal_reset_bug() -> None:
    if has_wal_reset_bug(sqlite3.sqlite_version_info) and not _warned.is_set():
        _warned.set()
        _log.info(
            "SQLite %s has the WAL-reset bug (fixed in 3.51.3); checkpoints are taken one at a "
            "time, under bank.lock. Do not write to the bank with other programs.",
            sqlite3.sqlite_version,
        )


def _engine(folder: Path | None, timeout_s: float, pool: type[Pool] = QueuePool) -> Engine:
    if folder is None:
        engine = create_engine(
            "sqlite://",
            poolclass=StaticPool,
            hide_parameters=True,  # remembered text is not for logs and tracebacks
            connect_args={"check_same_thread": False},
        )
    else:
        engine = create_engine(
            URL.create("sqlite", database=str(folder / FILE)),
            poolclass=pool,
            hide_parameters=True,
            **({"pool_timeout": timeout_s} if pool is QueuePool else {}),
            connect_args={"timeout": timeout_s},
        )
    event.listen(engine, "connect", _on_connect)
    return engine


def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # BEGIN is ours; the driver's own comes too late
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").fetchall()
