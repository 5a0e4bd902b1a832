"""SQLite under SQLAlchemy: connections, the one session scope, locks between processes.

In: a bank folder, or None for memory. Out: transactions. It knows no table.

`scope()` is the only place that begins, commits, rolls back, closes and translates errors.
bank.sqlite is never opened by hand: closing any descriptor of a file drops all POSIX locks that
this process holds on it, SQLite's included.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, QueuePool, StaticPool, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from memlong_agent.errors import ConfigError, StoreError
from memlong_agent.storage import faults

_log = logging.getLogger("memlong_agent.storage")
_WAL_BYTES = 4 << 20
_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",  # a delete must not come back after its file is gone
    "foreign_keys = ON",
    "secure_delete = ON",  # what is forgotten is overwritten with zeros
    "temp_store = MEMORY",  # no remembered text in temporary files
    "mmap_size = 0",  # page faults are 5-8x slower than reads on a cold disk
    "wal_autocheckpoint = 0",  # see Database.checkpoint
    f"journal_size_limit = {_WAL_BYTES}",
)
_warned = threading.Event()


class Database:
    """One bank's database; safe between threads, processes and across `fork`."""

    def __init__(self, folder: Path | None, timeout_s: float) -> None:
        self.folder = folder
        self.place = ":memory:" if folder is None else str(folder)
        self.timeout_s = timeout_s
        self._pid = os.getpid()
        self._closed = False
        # Memory is one connection: its transactions go one at a time.
        self._turn: AbstractContextManager[Any] = nullcontext() if folder else threading.RLock()
        self._engine = _engine(folder, timeout_s)
        _log_wal_reset_bug()

    @property
    def engine(self) -> Engine:
        """For event listeners; transactions go through :meth:`scope`."""
        return self._engine

    @contextmanager
    def scope(self, *, write: bool = False) -> Iterator[Connection]:
        """One transaction: committed at the end, rolled back when anything is raised.

        Writers begin IMMEDIATE: a deferred transaction that reads and then writes fails at once
        when another process wrote in between, whatever the timeout.

        Raises:
            StoreLockedError: busy past `timeout_s`.
            ConfigError: a text that UTF-8 cannot hold.
            StoreError: the disk is full, damaged, read-only, or the bank is closed.
        """
        if self._closed:
            raise StoreError(f"The bank at {self.place} is closed. Open it again.")
        if self._pid != os.getpid() and self.folder is not None:
            # SQLite connections must not be used, nor closed, on the other side of a fork.
            self._engine.dispose(close=False)
            self._pid = os.getpid()
        try:
            with self._turn, self._engine.connect() as plain:
                conn = plain.execution_options(memlong_write=write)
                with conn.begin():
                    yield conn
        except (sqlite3.Error, SQLAlchemyError) as exc:
            raise faults.from_sql(exc, self.place, self.timeout_s) from exc
        except UnicodeEncodeError as exc:
            raise ConfigError(
                f"{exc.object!r} cannot be stored: it holds half a character (a lone surrogate). "
                "Pass text that encodes to UTF-8."
            ) from exc
        if write and self._wal_bytes() > _WAL_BYTES:
            try:
                self.checkpoint()
            except StoreError as exc:  # the transaction is committed: this may wait for the next
                _log.warning("The write-ahead log could not be moved into the bank: %s", exc)

    @contextmanager
    def exclusive(self, *, wait: bool = True) -> Iterator[bool]:
        """The lock on `bank.lock`, among threads and processes; yields whether it was got."""
        if self.folder is None:
            yield True
            return
        try:
            fd = os.open(self.folder / "bank.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise faults.from_os(exc, self.place) from exc
        try:
            yield self._flock(fd, self.timeout_s if wait else 0.0)
        finally:
            os.close(fd)

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
            mode = "TRUNCATE" if truncate else "PASSIVE"
            try:
                with self._turn:
                    raw = self._engine.raw_connection()
                    try:
                        busy = raw.cursor().execute(f"PRAGMA wal_checkpoint({mode})").fetchone()[0]
                    finally:
                        raw.close()
            except (sqlite3.Error, SQLAlchemyError) as exc:
                raise faults.from_sql(exc, self.place, self.timeout_s) from exc
            if truncate and busy:
                raise faults.locked(self.place, self.timeout_s)

    def close(self) -> None:
        self._closed = True
        self._engine.dispose(close=self._pid == os.getpid())

    def _wal_bytes(self) -> int:
        if self.folder is None:
            return 0
        with suppress(FileNotFoundError):
            return os.stat(self.folder / "bank.sqlite-wal").st_size
        return 0

    def _flock(self, fd: int, wait_s: float) -> bool:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.01)


def make_folder(path: Path) -> None:
    """Create an empty bank folder, or accept one that is a bank already.

    Raises:
        StoreError: the path is a file, holds other things, or cannot be written.
    """
    try:
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file, a bank is a folder. Give the path of a folder.")
        os.makedirs(path, mode=0o700, exist_ok=True)
        names = {entry.name for entry in path.iterdir()}
        if "bank.sqlite" not in names:
            if names - {"bank.lock", "kv"}:
                raise StoreError(
                    f"{path} is not a memory bank: it holds {min(names)!r} and no "
                    "bank.sqlite. Give an empty or a new folder."
                )
            path.chmod(0o700)
            # Made by hand once, for its mode; log and shared memory inherit it from SQLite.
            with suppress(FileExistsError):
                os.close(os.open(path / "bank.sqlite", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        (path / "kv").mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise faults.from_os(exc, str(path)) from exc


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


def _engine(folder: Path | None, timeout_s: float) -> Engine:
    if folder is None:
        engine = create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
    else:
        engine = create_engine(
            URL.create("sqlite", database=str(folder / "bank.sqlite")),
            poolclass=QueuePool,
            pool_timeout=timeout_s,
            connect_args={"timeout": timeout_s},
        )
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # BEGIN is ours; the driver's own comes too late
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}").fetchall()


def _on_begin(conn: Connection) -> None:
    write = conn.get_execution_options().get("memlong_write", False)
    conn.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
