"""PostgreSQL: the rows in one schema of a database, the K/V files in the bank's folder.

The folder carries the bank's id in `bank.id`, so that rows and files of two banks cannot meet. The
schema is the first of the connection's search_path, and only that; to keep several banks in one
database add `?options=-csearch_path%3D<schema>` to the URL.

A password stays in the URL: no error and no log line holds it.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from memlong_agent.errors import ConfigError, StoreError
from memlong_agent.storage import faults
from memlong_agent.storage.database import Contents, Database
from memlong_agent.storage.lexical import LexicalTable
from memlong_agent.storage.postings import PostingsLexical

MARKER = "bank.id"
_EXAMPLE = "postgresql+psycopg://me@localhost/memory"
_DRIVER = "postgresql+psycopg"
_OLDEST = 13
# What a remembered text, a name or a number made of them stands in.
_CONTENT = ["owners", "sessions", "memories", "chunks", "vectors", "items", "postings", "recalls"]
_CONTENT += ["meta", "blobs"]  # secrets, and keys of encrypted banks; checksums of K/V
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('memlong ' || current_schema(), 0))"
_MARK = "SELECT obj_description(to_regclass('meta'), 'pg_class')"
_TABLES = """
    SELECT count(*) FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')"""
_SETTINGS = """
    SELECT set_config('search_path', quote_ident(current_schema()), false),
        set_config('lock_timeout', %s, false),
        -- A delete must not come back after its file is gone.
        set_config('synchronous_commit', CASE current_setting('synchronous_commit')
            WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, false),
        -- A writer whose machine is gone holds the bank for a minute, not for two hours.
        set_config('tcp_keepalives_idle', '30', false),
        set_config('tcp_keepalives_interval', '10', false),
        set_config('tcp_keepalives_count', '3', false)"""
# Transactions that may still see rows which were deleted before this statement.
_OLD_READERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND xact_start < %s"""
_OWN_TABLES = """
    SELECT relname, pg_has_role(relowner, 'USAGE') FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relname = ANY(%s)"""


class PostgresDatabase(Database):
    """A schema of a PostgreSQL database, and the folder of its K/V.

    Writers take an advisory lock of the schema first thing in a READ COMMITTED transaction; readers
    run REPEATABLE READ, READ ONLY.

    Raises:
        ConfigError: not a URL of PostgreSQL, or psycopg is not installed.
    """

    def __init__(self, folder: Path, url: str, timeout_s: float) -> None:
        parsed = checked_url(url)
        place = f"{folder} with {_shown(parsed)}"
        super().__init__(_engine(parsed, timeout_s), folder, place, timeout_s)
        self._folder = folder

    def lexical(self) -> LexicalTable:
        return PostingsLexical()

    def require(self, conn: Connection) -> None:
        query = "SELECT current_schema(), current_setting('server_encoding'), %s::int <= "
        query += "current_setting('server_version_num')::int / 10000"
        schema, encoding, recent = conn.exec_driver_sql(query, (_OLDEST,)).one()
        if schema is None:
            raise StoreError(
                f"{self.place} has no schema to hold a bank: the search_path names none that is "
                "there. Create it (CREATE SCHEMA ...), or correct the search_path."
            )
        if encoding != "UTF8" or not recent:
            raise StoreError(
                f"{self.place} cannot hold a bank: it needs PostgreSQL {_OLDEST} or newer and a "
                f"database in UTF8, this one is in {encoding}. Create one with ENCODING 'UTF8'."
            )

    def contents(self, conn: Connection) -> Contents:
        if conn.exec_driver_sql(_MARK).scalar() == "memlong-agent bank":
            return "bank"
        return "other" if conn.exec_driver_sql(_TABLES).scalar() else "nothing"

    def foreign(self) -> StoreError:
        return StoreError(
            f"{self.place} is not a memory bank: its schema holds tables of another program. "
            "Choose another database, or a schema of its own: "
            "?options=-csearch_path%3D<schema> at the end of the URL."
        )

    @property
    def options(self) -> str:
        return f"--bank {shlex.quote(str(self._folder))} --database URL"

    def upgrading(self) -> str:
        command = f"memlong upgrade {self.options} --backed-up"
        return f"Dump the database (pg_dump), then run: {command}"

    def bind(self, bank_id: str, *, new: bool) -> None:
        try:
            found = _marker(self._folder)
            if found == bank_id:
                return
            if new and not any((self._folder / "kv").rglob("*.safetensors")):
                _write_marker(self._folder, bank_id)
                return
        except OSError as exc:
            raise faults.from_os(exc, self.place) from exc
        raise StoreError(
            f"{self._folder} is not the folder of this database: the rows are of bank {bank_id}, "
            f"the K/V files of {'bank ' + found if found else 'none'}. Give the folder and the "
            "database that belong together."
        )

    def settled(self) -> AbstractContextManager[Connection]:
        # A commit whose answer was lost may still be under way: it holds the lock until it ended.
        return self.scope(write=True)

    def purge(self) -> None:
        """Rewrite the tables. The server's write-ahead log, replicas and backups are not the
        bank's own: they keep what was forgotten as long as their keeper lets them."""
        with self._translated(), self._engine.connect() as plain:
            conn = plain.execution_options(isolation_level="AUTOCOMMIT")
            tables = conn.exec_driver_sql(_OWN_TABLES, (_CONTENT,)).all()
            if not all(mine for _, mine in tables):
                raise StoreError(
                    f"The tables of {self.place} cannot be rewritten: they belong to another role. "
                    "Connect as the role that made the bank."
                )
            self._await_readers(conn)
            for table, _ in tables:
                conn.exec_driver_sql(f"VACUUM (FULL) {table}")

    def problems(self, conn: Connection) -> list[str]:
        query = "SELECT checksum_failures FROM pg_stat_database WHERE datname = current_database()"
        failures = conn.exec_driver_sql(query).scalar()
        return [f"PostgreSQL found {failures} damaged pages in this database"] if failures else []

    def _await_readers(self, conn: Connection) -> None:
        # VACUUM keeps what an older transaction could still read.
        start = conn.exec_driver_sql("SELECT clock_timestamp()").scalar()
        deadline = time.monotonic() + self.timeout_s
        while conn.exec_driver_sql(_OLD_READERS, (start,)).scalar():
            if time.monotonic() >= deadline:
                raise faults.locked(self.place, self.timeout_s)
            time.sleep(0.01)

    def _options(self, write: bool) -> dict[str, Any]:
        if write:
            return {"isolation_level": "READ COMMITTED", "postgresql_readonly": False}
        return {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}

    def _begin(self, conn: Connection, write: bool) -> None:
        if write:
            conn.exec_driver_sql(_LOCK)

    def _wrote(self) -> None:
        """Nothing to do: the server looks after its log."""


def checked_url(url: str) -> URL:
    """The URL for psycopg. ConfigError, without the password, if it is none of PostgreSQL."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # their words repeat parts of the URL
        parsed = URL.create("none")
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername=_DRIVER)
    if parsed.drivername != _DRIVER:
        raise ConfigError(f"The database is not a URL of PostgreSQL. Write it like {_EXAMPLE}.")
    return parsed


def _engine(url: URL, timeout_s: float) -> Engine:
    _require_driver()
    options: dict[str, Any] = {"application_name": "memlong", "client_encoding": "utf8"}
    options["connect_timeout"] = max(2, round(timeout_s))
    engine = create_engine(
        url,
        pool_timeout=timeout_s,
        pool_pre_ping=True,  # a server that was restarted is met with new connections
        hide_parameters=True,  # remembered text is not for logs
        connect_args={name: value for name, value in options.items() if name not in url.query},
    )

    def on_connect(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(_SETTINGS, (f"{max(1, round(timeout_s * 1000))}ms",))
        connection.commit()

    event.listen(engine, "connect", on_connect)
    return engine


def _require_driver() -> None:
    if importlib.util.find_spec("psycopg") is None:
        raise ConfigError(
            "PostgreSQL needs the package psycopg. Install it: pip install "
            "'memlong-agent[postgres]'"
        )
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise ConfigError(
            "psycopg finds no libpq. Install the one that brings it along: pip install "
            "'memlong-agent[postgres]'"
        ) from None


def _shown(url: URL) -> str:
    """A URL for errors: neither the password nor the options, which may hold one."""
    host = url.host or url.query.get("host")
    named = URL.create("postgresql", url.username, None, str(host or ""), url.port, url.database)
    return named.render_as_string().replace("%2F", "/")


def _marker(folder: Path) -> str | None:
    with suppress(FileNotFoundError):
        return (folder / MARKER).read_text().strip()
    return None


def _write_marker(folder: Path, bank_id: str) -> None:
    """Durable before the rows are: rows that no folder knows would be lost."""
    made = folder / f"{MARKER}.tmp"
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{bank_id}\n".encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(made, folder / MARKER)
    above = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(above)
    finally:
        os.close(above)
