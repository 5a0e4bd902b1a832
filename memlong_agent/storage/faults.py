"""Foreign failures become ours here: operating system and SQL errors in, one sentence out.

The most specific cause wins; every sentence ends with what to do. Knows no table and no format.
"""

from __future__ import annotations

import errno
import sqlite3
from typing import Any

from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from memlong_agent.errors import (
    ArchiveError,
    ConfigError,
    MemLongError,
    StoreCorruptError,
    StoreError,
    StoreLockedError,
)

_FREE_SPACE = "Free space on this disk (or raise the quota), then try again."
_PERMISSIONS = "Give this user write permission, or choose another folder."
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}

_BUSY_STATES = ("40", "55P03", "57014")
# SQLSTATE, or the beginning of several -> our error, and what to do.
_STATES: dict[str, tuple[type[MemLongError], str]] = {
    "": (StoreError, "This is a bug: please report it."),
    "08": (StoreError, "Start the PostgreSQL server, or check the URL of the database."),
    "22": (ConfigError, "Pass another text or number."),
    "25006": (StoreError, "Connect to the primary server, which may be written to."),
    "28": (StoreError, "Check the user and the password in the URL of the database."),
    "3D": (StoreError, "Create the database, or correct its URL."),
    "42501": (StoreError, "Give this role all rights on the bank's schema."),
    "53": (StoreError, "Wait, or raise the limits of the PostgreSQL server."),
    "53100": (StoreError, "Free space on the disk of the PostgreSQL server, then try again."),
    "54": (ConfigError, "Use a shorter name, key or source."),
    "57P": (StoreError, "Start the PostgreSQL server, then try again."),
    "58": (StoreError, "Check the disk of the PostgreSQL server, then try again."),
    "XX001": (StoreCorruptError, "The database is damaged: restore it from a backup."),
    "XX002": (StoreCorruptError, "The database is damaged: restore it from a backup."),
}


def from_os(exc: OSError, place: str) -> StoreError:
    """An :class:`OSError` met while reading or writing the bank at `place`."""
    what = f"The bank at {place} cannot be used: {exc.strerror or exc}"
    if exc.filename:
        what += f" ({exc.filename})"
    if exc.errno in _FULL:
        return StoreError(f"{what}. {_FREE_SPACE}")
    if exc.errno in _DENIED:
        return StoreError(f"{what}. {_PERMISSIONS}")
    return StoreError(f"{what}. Check the path and the disk, then try again.")


def from_sql(exc: sqlite3.Error | SQLAlchemyError, place: str, timeout_s: float) -> MemLongError:
    """An error of a driver or of SQLAlchemy, met in the bank at `place`."""
    cause = exc.orig if isinstance(exc, StatementError) else exc
    if isinstance(cause, MemLongError):
        return cause  # of a value that a column refused
    if hasattr(cause, "sqlstate"):
        return _from_psycopg(cause, place, timeout_s, isinstance(exc, OperationalError))
    code = _code(cause)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or isinstance(exc, PoolTimeoutError):
        return locked(place, timeout_s)
    if isinstance(exc, IntegrityError):
        return _collision(cause)
    if code == sqlite3.SQLITE_FULL:
        return StoreError(f"The bank at {place} cannot grow: {cause}. {_FREE_SPACE}")
    if code == sqlite3.SQLITE_NOTADB:
        return StoreError(
            f"{place} is not a memory bank: its bank.sqlite is not an SQLite database. "
            "Choose another folder, or restore the file from a backup."
        )
    if code == sqlite3.SQLITE_CORRUPT:
        return StoreCorruptError(
            f"bank.sqlite in {place} is damaged: {cause}. Restore it from a backup, or save what "
            "is left with: sqlite3 bank.sqlite .recover"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StoreError(
            f"The bank at {place} cannot be opened for writing: {cause}. {_PERMISSIONS}"
        )
    if code == sqlite3.SQLITE_ERROR:
        return StoreError(f"The bank at {place} failed: {cause}. This is a bug: please report it.")
    return StoreError(f"The bank at {place} failed: {cause}. Check the disk, then try again.")


def from_archive(exc: OSError | ValueError | sqlite3.Error, place: str) -> ArchiveError:
    """An error met while reading or writing the archive at `place`, or a file beside it."""
    code = exc.errno if isinstance(exc, OSError) else None
    what = f"The archive {place} cannot be read or written: "
    what += (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
    full = getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    if full or code in _FULL:
        return ArchiveError(f"{what}. {_FREE_SPACE}")
    if code in _DENIED:
        return ArchiveError(f"{what}. Give this user the permission, or use another path.")
    return ArchiveError(f"{what}. Check the path and the disk, then try again.")


def is_disk(exc: StoreError) -> bool:
    """Whether an error of :func:`from_sql` says that the disk failed or is full."""
    return _code(exc.__cause__) in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)


def is_read_only(exc: StoreError) -> bool:
    """Whether an error of :func:`from_sql` says that the database cannot be written."""
    return _code(exc.__cause__) == sqlite3.SQLITE_READONLY


def _code(exc: BaseException | None) -> int:
    """SQLite's code of an error, 0 if it has none."""
    cause = getattr(exc, "orig", exc)
    # Extended codes keep the primary one in the low byte (SQLITE_BUSY_SNAPSHOT is 5 | 2 << 8).
    return (getattr(cause, "sqlite_errorcode", None) or 0) & 0xFF


def _from_psycopg(cause: Any, place: str, timeout_s: float, operational: bool) -> MemLongError:
    """An error of psycopg; an operational one without an SQLSTATE is of the way to the server."""
    # The first line only: the others repeat values.
    said = (cause.diag.message_primary or str(cause).split("\n")[0]).strip().rstrip(".")
    state = cause.sqlstate or ("08000" if operational else "22021" if "NUL" in said else "")
    if state.startswith("23"):
        return _collision(said)
    if state.startswith(_BUSY_STATES):
        return locked(place, timeout_s)
    # The longest code that fits: five letters are a case, two its class.
    fits = [code for code in _STATES if state.startswith(code)]
    kind, advice = _STATES[max(fits, key=len, default="")]
    return kind(f"The bank at {place} failed: {said}. {advice}")


def _collision(cause: object) -> ConfigError:
    return ConfigError(
        f"This memory collides with one already in the bank ({cause}). "
        "Use another id or message_id, or update the memory that has it."
    )


def locked(place: str, timeout_s: float) -> StoreLockedError:
    return StoreLockedError(
        f"The bank at {place} was busy for {timeout_s:g} s. Wait for the other process to finish "
        "its write, or raise timeout_s (--timeout)."
    )
