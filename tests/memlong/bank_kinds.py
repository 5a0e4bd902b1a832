"""The kinds of a bank, and its rows as they are seen and harmed from outside."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

KINDS = ("sqlite", "encrypted", "postgres", "encrypted postgres")
KEY = bytes(range(32)).hex()


@dataclass(frozen=True)
class Kind:
    """Where a bank is, and its key."""

    folder: Path
    database: str | None
    key: str | None

    @classmethod
    def of(cls, name: str, folder: Path, request: pytest.FixtureRequest) -> Kind:
        """A bank that is not made yet, of the kind `name`."""
        on_server = name.endswith("postgres")
        database = request.getfixturevalue("postgres").url() if on_server else None
        return cls(folder, database, KEY if name.startswith("encrypted") else None)

    @property
    def options(self) -> dict[str, Any]:
        """For `MemLong` and its commands."""
        return {"bank": self.folder, "database": self.database, "key": self.key}

    def run(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement on the rows, past the bank."""
        if self.database is None:
            with closing(sqlite3.connect(self.folder / "bank.sqlite")) as conn, conn:
                return conn.execute(statement).fetchall()
        with psycopg.connect(self.database.replace("+psycopg", "")) as server:
            done = server.execute(statement.encode())
            return done.fetchall() if done.description else []

    def file_of(self, chunk: int) -> Path:
        """The K/V file of a chunk."""
        [(blob_id,)] = self.run(f"SELECT blob_id FROM blobs WHERE chunk_pk = {chunk}")
        [path] = self.folder.glob(f"kv/*/{blob_id}.safetensors")
        return path


def on(*names: str) -> pytest.MarkDecorator:
    """Run a test on the bank of each kind; without it, `kind` is a plain one in SQLite."""
    return pytest.mark.parametrize("kind", names, indirect=True)
