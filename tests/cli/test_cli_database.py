"""`--database`: the same commands on a bank whose rows are in PostgreSQL."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from cli_results import KEY, Run, line_of, objects, ok
from postgres_server import PostgresServer

from memlong_agent.storage.base import utc_now
from memlong_agent.storage.folder import open_database
from memlong_agent.storage.migrations import MIGRATIONS, prepare


def test_what_is_told_in_one_process_is_there_in_the_next(
    memlong: Run, note: str, tmp_path: Path, postgres: PostgresServer
) -> None:
    where = ("--database", postgres.url())
    [written] = objects(memlong("add", note, "--json", *where))
    assert {path.name for path in (tmp_path / "bank").iterdir()} == {"bank.id", "bank.lock", "kv"}
    [found] = objects(memlong("search", "spare key", "--json", *where))
    assert (found["memory_id"], KEY in found["text"]) == (written["memory_ids"][0], True)
    ok(memlong("doctor", *where))
    assert "is up to date" in ok(memlong("upgrade", *where))
    ok(memlong("forget", found["memory_id"], *where))
    assert "no memories" in ok(memlong("list", *where))
    assert "Give its URL too" in line_of(memlong("list"))


def test_an_older_bank_is_upgraded_once_it_is_dumped(
    memlong: Run, tmp_path: Path, postgres: PostgresServer
) -> None:
    bank, url = tmp_path / "bank", postgres.url()
    with closing(open_database(bank, url, 10.0)) as db:
        prepare(db, utc_now(), known=MIGRATIONS[:1])
    where = ("--bank", str(bank), "--database", url)
    command = f"memlong upgrade --bank {bank} --database URL --backed-up"
    assert command in line_of(memlong("list", *where))
    refused = line_of(memlong("upgrade", *where))
    assert "no backup" in refused and "pg_dump" in refused and refused.endswith(command)
    assert "m002_forget" in ok(memlong("upgrade", *where, "--backed-up"))
    assert "is up to date" in ok(memlong("upgrade", *where))
    assert "no memories" in ok(memlong("list", *where))


def test_the_variable_names_the_database_too(
    memlong: Run, note: str, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMLONG_DATABASE", postgres.url())
    ok(memlong("add", note))
    [owner] = objects(memlong("stats", "--json"))[0]["owners"]
    assert owner["memories"] == 1


@pytest.mark.parametrize(
    "url", ["mysql://me:hunter2@host/db", "postgresql://me:hunter2@/db?host=/"]
)
def test_a_wrong_database_is_one_line_without_its_password(
    memlong: Run, note: str, url: str
) -> None:
    line = line_of(memlong("add", note, "--database", url))
    assert "hunter2" not in line and "database" in line
