"""A PostgreSQL server of the tests' own, over a unix socket, where `pg_ctl` is installed.

PostgreSQL refuses to run as root: then it runs as `postgres` or `nobody`, in a folder of theirs.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

_SCHEMAS = itertools.count()


class PostgresServer:
    """A server over a cluster of its own."""

    def __init__(self, programs: Path, folder: Path, user: dict[str, Any]) -> None:
        self._programs, self._user = programs, user
        self.folder = folder
        self.data = folder / "data"
        made = ["-D", str(self.data), "-U", "memlong", "-A", "trust", "-E", "UTF8", "--no-locale"]
        self._run("initdb", *made, "--no-sync")

    def start(self, *settings: str) -> None:
        """Start with settings such as `fsync=off`, and wait until it answers."""
        given = ["listen_addresses=", f"unix_socket_directories={self.folder}", *settings]
        options = " ".join(f"-c {each}" for each in given)
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self.data), "-l", log, "-o", options, "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop")

    def url(self) -> str:
        """URL of a new, empty schema."""
        name = f"bank{next(_SCHEMAS)}"
        self._execute(f"CREATE SCHEMA {name}")
        where = f"host={quote(str(self.folder), safe='')}&options=-csearch_path%3D{name}"
        return f"postgresql+psycopg://memlong@/postgres?{where}"

    def checkpoint(self) -> None:
        """Analyze all tables, as the server does now and then, and write what it has in memory."""
        self._execute("ANALYZE")
        self._execute("CHECKPOINT")

    def _execute(self, statement: str) -> None:
        import psycopg

        dsn = f"host={self.folder} user=memlong dbname=postgres"
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(statement.encode())

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        with (self.folder / "out").open("ab") as out:  # a pipe would stay open with the server
            done = subprocess.run(
                command, cwd=self.folder, stdout=out, stderr=out, timeout=60, **self._user
            )
        if done.returncode:
            raise RuntimeError(f"{program}: {(self.folder / 'out').read_text()[-2000:]}")


def found() -> tuple[Path, dict[str, Any]] | str:
    """The folder of the programs and who may run them; or why there is no server."""
    usual = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = os.pathsep.join([os.environ["PATH"], *map(str, usual)])
    control = shutil.which("pg_ctl", path=path)
    if control is None:
        return "pg_ctl is not installed"
    programs = Path(control).resolve().parent
    if os.geteuid() != 0:
        return programs, {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return programs, {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    return "root may not run PostgreSQL, and there is no user postgres or nobody"


def new_server() -> PostgresServer:
    """A server that is not running yet, in a folder of its own; skips where there is none."""
    where = found()
    if isinstance(where, str):
        pytest.skip(f"no PostgreSQL server: {where}")
    programs, user = where
    folder = Path(tempfile.mkdtemp(prefix="memlong-pg-"))  # short: a socket's path is <= 107 bytes
    if user:
        os.chown(folder, user["user"], user["group"])
    return PostgresServer(programs, folder, user)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for the whole run; it does not sync, as no test of it cuts the power."""
    server = new_server()
    server.start("fsync=off", "full_page_writes=off", "synchronous_commit=off")
    yield server
    server.stop()
    shutil.rmtree(server.folder)


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server of one module's own, that syncs as a server does; who stops it starts it again."""
    server = new_server()
    server.start()
    yield server
    server.stop()
    shutil.rmtree(server.folder)
