"""Where a bank is: its folder, made or recognised, and the database that goes with it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from memlong_agent.errors import ConfigError, StoreError
from memlong_agent.storage import faults
from memlong_agent.storage.database import Database
from memlong_agent.storage.postgres import MARKER, PostgresDatabase
from memlong_agent.storage.sqlite import FILE, SqliteDatabase


def open_database(folder: Path | None, url: str | None, timeout_s: float) -> Database:
    """The database of a bank, whose folder is made if need be; None is memory.

    Raises:
        ConfigError: a URL without a folder, or not one of PostgreSQL.
        StoreError: as :func:`make_folder`.
    """
    if url is None:
        if folder is not None:
            make_folder(folder)
        return SqliteDatabase(folder, timeout_s)
    if folder is None:
        raise ConfigError(
            "A bank in a PostgreSQL database keeps its K/V in a folder: give one instead of "
            "':memory:'."
        )
    db = PostgresDatabase(folder, url, timeout_s)
    make_folder(folder, rows_here=False)
    return db


def make_folder(path: Path, *, rows_here: bool = True) -> None:
    """Create an empty bank folder, or accept one that is a bank already.

    `rows_here`: the rows are to be in the folder, not in a database elsewhere.

    Raises:
        StoreError: the path is a file, holds other things, is a bank of the other kind, or cannot
            be written.
    """
    try:
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file, a bank is a folder. Give the path of a folder.")
        os.makedirs(path, mode=0o700, exist_ok=True)
        names = {entry.name for entry in path.iterdir()}
        _check_kind(path, names, rows_here)
        if not names & {FILE, MARKER}:
            path.chmod(0o700)
            if rows_here:
                # Made by hand once, for its mode; log and shared memory inherit it from SQLite.
                with suppress(FileExistsError):
                    os.close(os.open(path / FILE, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        (path / "kv").mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise faults.from_os(exc, str(path)) from exc


def _check_kind(path: Path, names: set[str], rows_here: bool) -> None:
    if rows_here and MARKER in names:
        raise StoreError(
            f"The rows of the bank at {path} are in a PostgreSQL database. Give its URL too: "
            "database=... (--database, MEMLONG_DATABASE)."
        )
    if not rows_here and FILE in names:
        raise StoreError(
            f"The rows of the bank at {path} are in its {FILE}, not in a PostgreSQL database. "
            "Leave the database out, or give a new folder."
        )
    others = names - {"bank.lock", "kv", f"{MARKER}.tmp"}
    if others and not names & {FILE, MARKER}:
        raise StoreError(
            f"{path} is not a memory bank: it holds {min(others)!r} and no "
            f"{FILE if rows_here else MARKER}. Give an empty or a new folder."
        )
