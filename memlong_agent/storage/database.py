"""A bank's database under SQLAlchemy: the one session scope, and the locks between processes.

In: a bank folder, or None for memory. Out: transactions. It knows no table; what differs between
SQLite and PostgreSQL is in sqlite.py and postgres.py.

`scope()` is the only place that begins, commits, rolls back, closes and translates errors.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from memlong_agent.errors import ConfigError, StoreError
from memlong_agent.storage import faults, seal
from memlong_agent.storage.lexical import LexicalTable
from memlong_agent.storage.seal import PLAIN, Cipher

T = TypeVar("T")
Contents = Literal["nothing", "bank", "other"]


class Database(ABC):
    """One bank's database; safe between threads, processes and across `fork`.

    One writer at a time in the whole bank, so that keys and event numbers rise in the order of the
    commits; readers see one consistent state and wait for nobody.
    """

    def __init__(self, engine: Engine, folder: Path | None, place: str, timeout_s: float) -> None:
        self.folder = folder
        self.place = place
        """How errors name the bank; never holds a password."""
        self.timeout_s = timeout_s
        self.cipher: Cipher = PLAIN
        self.guard: Callable[[Connection], None] | None = None
        """Called first in every transaction; refuses when the bank became another's meanwhile."""
        self._engine = engine
        self._pid = os.getpid()
        self._closed = False
        self._reading = threading.local()
        # Memory is one connection: its transactions go one at a time.
        self._turn: AbstractContextManager[Any] = nullcontext() if folder else threading.RLock()

    @property
    def options(self) -> str:
        """How a command names the bank."""
        return f"--bank {shlex.quote(self.place)}"

    @property
    def engine(self) -> Engine:
        """For event listeners; transactions go through :meth:`scope`."""
        return self._engine

    @contextmanager
    def scope(self, *, write: bool = False) -> Iterator[Connection]:
        """One transaction: committed at the end, rolled back when anything is raised.

        Raises:
            StoreLockedError: busy past `timeout_s`.
            ConfigError: a text that UTF-8 cannot hold, or with a NUL character.
            StoreError: the disk is full, damaged, read-only, the server is away, or the bank is
                closed.
        """
        if self._closed:
            raise StoreError(f"The bank at {self.place} is closed. Open it again.")
        shared = getattr(self._reading, "conn", None)
        if shared is not None and not write:
            yield shared
            return
        if self._pid != os.getpid() and self.folder is not None:
            # Connections must not be used, nor closed, on the other side of a fork.
            self._engine.dispose(close=False)
            self._pid = os.getpid()
        with self._settling(write), self._turn, self._engine.connect() as plain:
            conn = plain.execution_options(**{seal.OPTION: self.cipher}, **self._options(write))
            with conn.begin():
                self._begin(conn, write)
                if self.guard is not None:
                    self.guard(conn)
                yield conn
        if write:
            self._wrote()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Inside, all reading scopes of this thread are one transaction: one state, begun once."""
        with self.scope() as conn:
            if getattr(self._reading, "conn", None) is not None:
                yield  # inside another one
                return
            self._reading.conn, self._reading.answers = conn, {}
            try:
                yield
            finally:
                self._reading.conn, self._reading.answers = None, None

    def once(self, question: Hashable, read: Callable[[], T]) -> T:
        """The answer of `read`, which is called once in a snapshot, where nothing changes."""
        answers = getattr(self._reading, "answers", None)
        if answers is None:
            return read()
        if question not in answers:
            answers[question] = read()
        answer: T = answers[question]
        return answer

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
            with suppress(OSError):  # the lock is gone whatever close says
                os.close(fd)

    def close(self) -> None:
        self._closed = True
        self._engine.dispose(close=self._pid == os.getpid())

    @abstractmethod
    def lexical(self) -> LexicalTable:
        """The word index that lives in this database."""

    @abstractmethod
    def require(self, conn: Connection) -> None:
        """StoreError unless this database can hold a bank."""

    @abstractmethod
    def contents(self, conn: Connection) -> Contents:
        """Whether there is nothing yet, a bank, or something of another program."""

    @abstractmethod
    def foreign(self) -> StoreError:
        """The error for a database that holds something of another program."""

    @abstractmethod
    def upgrading(self) -> str:
        """How a user brings a bank of an older version up to date, in one sentence."""

    @abstractmethod
    def bind(self, bank_id: str, *, new: bool) -> None:
        """Hold the folder of K/V and these rows together; inside the transaction of a new bank.

        StoreError if the folder is another bank's.
        """

    @abstractmethod
    def settled(self) -> AbstractContextManager[Connection]:
        """A transaction that sees how each earlier one of this process ended, even a commit whose
        answer was lost."""

    @abstractmethod
    def purge(self) -> None:
        """Leave no byte of deleted rows in the files of the database, nor in its log if that is
        the bank's own. StoreLockedError if others keep reading them past the timeout."""

    def compact(self) -> None:
        """As :meth:`purge`, but every page of the database is written anew."""
        self.purge()

    @abstractmethod
    def problems(self, conn: Connection) -> list[str]:
        """What the database itself finds wrong with its files and references."""

    @contextmanager
    def _settling(self, write: bool) -> Iterator[None]:
        """Foreign errors translated; what a failed write leaves behind undone."""
        try:
            with self._translated():
                yield
        except StoreError as exc:
            if write:
                self._failed(exc)
            raise

    def _failed(self, exc: StoreError) -> None:  # noqa: B027  (most databases need nothing here)
        """A write transaction ended with `exc`: see to it that it is and stays undone.

        StoreError, in place of `exc`, if nobody can tell now.
        """

    def _options(self, write: bool) -> dict[str, Any]:
        """Execution options of a transaction."""
        return {}

    @abstractmethod
    def _begin(self, conn: Connection, write: bool) -> None:
        """First thing in a transaction: a writer waits here for the others."""

    @abstractmethod
    def _wrote(self) -> None:
        """After a commit."""

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, SQLAlchemyError) as exc:
            raise faults.from_sql(exc, self.place, self.timeout_s) from exc
        except UnicodeEncodeError as exc:
            raise ConfigError(
                f"{exc.object[:60]!r} cannot be stored: it holds half a character (a lone "
                "surrogate). Pass text that encodes to UTF-8."
            ) from exc

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
            except OSError as exc:  # a file system without locks
                raise faults.from_os(exc, self.place) from exc
