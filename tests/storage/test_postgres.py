"""What only a bank in PostgreSQL has: a server that fails, a folder bound to it, a password."""

from __future__ import annotations

import logging
import os
import random
import shutil
import stat
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bank_making import ALICE, BOB, MODEL, NOON, SPEC, memory, vector_of
from postgres_server import PostgresServer
from sqlalchemy import Column, Connection, TypeDecorator, create_engine, event, inspect
from sqlalchemy.exc import OperationalError, ProgrammingError

from memlong_agent.errors import (
    ConfigError,
    IncompatibleMemoryError,
    MemLongError,
    StoreCorruptError,
    StoreError,
    StoreLockedError,
    StoreVersionError,
)
from memlong_agent.identity import Identity
from memlong_agent.storage import NewItem, Storage, faults, models, upgrade
from memlong_agent.storage.migrations import MIGRATIONS, Migration, applied, prepare
from memlong_agent.storage.postgres import checked_url

LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('memlong ' || current_schema(), 0))"
PASSWORD = "hunter2 & co"


@pytest.fixture
def server_bank(postgres: PostgresServer, tmp_path: Path) -> Iterator[Storage]:
    with Storage.open(tmp_path / "bank", database=postgres.url(), timeout_s=5) as bank:
        bank.claim(MODEL, SPEC)
        yield bank
        assert bank.verify() == []


def kv_files(folder: Path) -> set[Path]:
    return set((folder / "kv").rglob("*.safetensors"))


def test_the_word_index_ranks_as_fts5_does(server_bank: Storage) -> None:
    chance = random.Random(0)
    words = [f"word{n}" for n in range(60)] + ["7", "café", "東京都", "naïve", "x_y"]
    weights = [1 / (place + 1) for place in range(len(words))]
    batches = [
        [memory(" ".join(chance.choices(words, weights, k=6))) for _ in range(20)] for _ in range(5)
    ]
    with Storage.open(":memory:") as other:
        other.claim(MODEL, SPEC)
        for place, batch in enumerate(batches):
            for bank in (server_bank, other):
                bank.add(BOB if place % 4 == 3 else ALICE, batch)
        for bank in (server_bank, other):
            bank.delete(ALICE, [each.id for each in bank.list_memories(ALICE)[::7]])
        found = 0
        for _ in range(40):
            question = " ".join(chance.choices(words, k=8)) + " unheard"
            owner, depth = chance.choice((ALICE, BOB)), chance.choice((3, 50))
            hits = [
                [(hit.pk, hit.score, hit.rare) for hit in bank.search(owner, question, depth=depth)]
                for bank in (server_bank, other)
            ]
            assert hits[0] == hits[1]
            found += len(hits[0])
        assert found > 100


def test_folder_and_database_belong_together(postgres: PostgresServer, tmp_path: Path) -> None:
    urls = {name: postgres.url() for name in ("one", "two")}
    for name, url in urls.items():
        with Storage.open(tmp_path / name, database=url) as bank:
            bank.claim(MODEL, SPEC)
            bank.add(ALICE, [memory(name)])
    before = {name: kv_files(tmp_path / name) for name in urls}
    with pytest.raises(StoreError, match=r"not the folder of this database: .* belong together"):
        Storage.open(tmp_path / "one", database=urls["two"], grace_s=0)
    with pytest.raises(StoreError, match="files of none"):
        Storage.open(tmp_path / "new", database=urls["one"], grace_s=0)
    with pytest.raises(StoreError, match=r"in a PostgreSQL database. Give its URL too"):
        Storage.open(tmp_path / "one", grace_s=0)
    with pytest.raises(StoreError, match="not the folder of this database"):
        Storage.open(tmp_path / "one", database=postgres.url(), grace_s=0)  # an empty schema
    assert before == {name: kv_files(tmp_path / name) for name in urls}
    shutil.move(tmp_path / "one", tmp_path / "elsewhere")  # together they may move
    with Storage.open(tmp_path / "elsewhere", database=urls["one"]) as bank:
        assert [each.text for each in bank.list_memories(ALICE)] == ["one"]
        assert bank.verify() == []


def test_a_bank_of_one_kind_is_not_opened_as_the_other(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    Storage.open(tmp_path / "plain").close()
    with pytest.raises(StoreError, match=r"are in its bank.sqlite.*Leave the database out"):
        Storage.open(tmp_path / "plain", database=postgres.url())
    with pytest.raises(ConfigError, match="give one instead of ':memory:'"):
        Storage.open(":memory:", database=postgres.url())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(StoreError, match=r"holds 'thesis.txt' and no bank.id"):
        Storage.open(tmp_path / "other", database=postgres.url())


def test_a_folder_that_was_marked_before_a_crash_is_used_again(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    folder, url = tmp_path / "bank", postgres.url()
    folder.mkdir(mode=0o700)
    (folder / "kv").mkdir()
    (folder / "bank.id").write_text("0" * 32)  # of a bank whose rows were never committed
    with Storage.open(folder, database=url) as bank:
        bank.claim(MODEL, SPEC)
    with Storage.open(folder, database=url) as bank:
        assert bank.encoding_identity() == MODEL
    assert {path.name for path in folder.iterdir()} == {"bank.id", "bank.lock", "kv"}
    assert stat.S_IMODE((folder / "bank.id").stat().st_mode) == 0o600


def test_a_schema_of_another_program_is_left_alone(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    import psycopg

    url = postgres.url()
    schema = url.rpartition("%3D")[2]
    with psycopg.connect(f"host={postgres.folder} user=memlong dbname=postgres") as conn:
        conn.execute(f"CREATE TABLE {schema}.meta (key text, value text)".encode())
    with pytest.raises(StoreError, match=r"tables of another program.*a schema of its own"):
        Storage.open(tmp_path / "bank", database=url)
    with pytest.raises(StoreError, match=r"has no schema.*CREATE SCHEMA"):
        Storage.open(tmp_path / "bank", database=url.replace(schema, "nowhere"))


def test_a_busy_bank_gives_up_after_the_timeout(postgres: PostgresServer, tmp_path: Path) -> None:
    url = postgres.url()
    with Storage.open(tmp_path / "bank", database=url, timeout_s=0.1) as bank:
        bank.claim(MODEL, SPEC)
        (stored,) = bank.add(ALICE, [memory("a")])
        with Storage.open(tmp_path / "bank", database=url, timeout_s=5) as other:
            with other._db.scope(write=True):
                with pytest.raises(StoreLockedError, match=r"busy for 0.1 s.*timeout_s"):
                    bank.add(ALICE, [memory("b")])
                assert bank.list_memories(ALICE) == [stored]  # readers do not wait
            with bank._db.scope(write=True):
                thread = threading.Thread(target=other.add, args=(ALICE, [memory("c")]))
                thread.start()
                thread.join(0.2)
                assert thread.is_alive()  # writers wait for each other
            thread.join()
        assert len(bank.list_memories(ALICE)) == 2
        bank.sweep()
    with Storage.open(tmp_path / "bank", database=url, grace_s=0) as bank:
        bank.sweep()
        assert bank.verify() == [] and len(kv_files(tmp_path / "bank")) == 2


def test_a_reader_sees_one_state_and_may_not_write(server_bank: Storage) -> None:
    server_bank.add(ALICE, [memory("a")])
    with server_bank._db.scope() as conn:
        count = "SELECT count(*) FROM memories"
        assert conn.exec_driver_sql(count).scalar() == 1
        server_bank.add(ALICE, [memory("b")])
        assert conn.exec_driver_sql(count).scalar() == 1
    with pytest.raises(StoreError, match="read-only"), server_bank._db.scope() as conn:
        conn.exec_driver_sql("DELETE FROM memories")


def test_a_connection_that_is_cut_off_loses_nothing(server_bank: Storage, tmp_path: Path) -> None:
    server_bank.add(ALICE, [memory("a")])
    cut = True

    def cut_off(conn: Any) -> None:
        nonlocal cut
        if cut:
            cut = False
            pid = conn.connection.driver_connection.info.backend_pid
            with server_bank._db.engine.connect() as other:
                other.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")

    event.listen(server_bank._db.engine, "commit", cut_off)
    with pytest.raises(StoreError, match="Start the PostgreSQL server"):
        server_bank.add(ALICE, [memory("b")])
    assert [each.text for each in server_bank.list_memories(ALICE)] == ["a"]
    assert len(kv_files(tmp_path / "bank")) == 1
    server_bank.add(ALICE, [memory("c")])
    assert len(server_bank.list_memories(ALICE)) == 2


def test_a_commit_whose_answer_is_lost_keeps_its_files(
    server_bank: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(conn: Any) -> None:
        event.remove(server_bank._db.engine, "commit", lost)
        conn.connection.driver_connection.execute("COMMIT")
        raise KeyboardInterrupt

    event.listen(server_bank._db.engine, "commit", lost)
    with pytest.raises(KeyboardInterrupt):
        server_bank.add(ALICE, [memory("a")])
    (stored,) = server_bank.list_memories(ALICE)
    assert len(server_bank.read_kv(stored.chunk_pks)) == 1


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:{}@host/db",
        "postgresql+psycopg2://me:{}@host/db",
        "postgresql+psycopg://me:x@host:{}/db",
        "no url {}",
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"not a URL of PostgreSQL. Write it like") as caught:
        Storage.open(tmp_path / "bank", database=url.format(PASSWORD))
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", ["postgres", "postgresql", "postgresql+psycopg"])
def test_the_usual_names_of_the_driver_are_taken(name: str) -> None:
    assert checked_url(f"{name}://me@host/db").drivername == "postgresql+psycopg"


def test_a_password_is_in_no_error_and_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, postgres: PostgresServer
) -> None:
    coded = PASSWORD.replace(" ", "%20").replace("&", "%26")
    nobody = str(tmp_path).replace("/", "%2F")
    with caplog.at_level(logging.DEBUG):
        for url in (
            f"postgresql://me:{coded}@/db?host={nobody}",
            f"postgresql://me@/db?host={nobody}&password={coded}",
            f"postgresql://me@/db?host={nobody}&sslpassword={coded}",
        ):
            with pytest.raises(StoreError, match="postgresql://me@") as caught:
                Storage.open(tmp_path / "bank", database=url, timeout_s=2)
            said = "".join(traceback.format_exception(caught.value))
            assert PASSWORD not in said and coded not in said
        url = postgres.url().replace("memlong@", f"memlong:{coded}@")
        with Storage.open(tmp_path / "bank", database=url) as bank:
            assert PASSWORD not in repr(vars(bank._db)) and coded not in repr(vars(bank._db))
    assert PASSWORD not in caplog.text and coded not in caplog.text


def test_remembered_text_is_not_in_the_errors_of_statements(server_bank: Storage) -> None:
    (stored,) = server_bank.add(ALICE, [memory("private words")])
    again = memory("private words", id=stored.id)
    with pytest.raises(ConfigError, match="collides") as caught:
        server_bank.add(BOB, [again])
    assert "private" not in "".join(traceback.format_exception(caught.value))


def test_without_the_driver_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'memlong-agent\[postgres\]'"):
        Storage.open(tmp_path / "bank", database="postgresql://me@host/db")
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize(
    ("state", "kind", "advice"),
    [
        ("55P03", StoreLockedError, "timeout_s"),
        ("40P01", StoreLockedError, "timeout_s"),
        ("57014", StoreLockedError, "timeout_s"),
        ("53100", StoreError, "Free space on the disk of the PostgreSQL server"),
        ("53300", StoreError, "Wait, or raise the limits"),
        ("28P01", StoreError, "user and the password"),
        ("3D000", StoreError, "Create the database"),
        ("42501", StoreError, "all rights"),
        ("25006", StoreError, "primary server"),
        ("54000", ConfigError, "Use a shorter"),
        ("22021", ConfigError, "Pass another text"),
        ("23505", ConfigError, "Use another id"),
        ("57P01", StoreError, "Start the PostgreSQL server"),
        ("58030", StoreError, "Check the disk"),
        ("XX001", StoreCorruptError, "backup"),
        ("42P01", StoreError, "report it"),
    ],
)
def test_errors_of_the_server_end_with_what_to_do(
    state: str, kind: type[MemLongError], advice: str
) -> None:
    cause = psycopg.errors.lookup(state)("said the server\nDETAIL: Key (text)=(private)")
    said = faults.from_sql(ProgrammingError("SELECT", None, cause), "/bank with postgresql://", 3)
    assert type(said) is kind and advice in str(said)
    assert "private" not in str(said)


def test_a_server_that_does_not_answer_is_told_from_a_bug() -> None:
    cause = psycopg.OperationalError("connection failed")
    said = faults.from_sql(OperationalError("", None, cause), "/bank", 3)
    assert "Start the PostgreSQL server" in str(said)
    cause = psycopg.ProgrammingError("no such thing")
    assert "report it" in str(faults.from_sql(ProgrammingError("", None, cause), "/bank", 3))


def test_a_purge_leaves_no_byte_of_what_was_forgotten_in_the_tables(
    server_bank: Storage, postgres: PostgresServer, tmp_path: Path
) -> None:
    secret = memory(
        "velorasecret lives here",
        source="sourcesecret",
        session="sessionsecret",
        metadata={"k": "metasecret"},
        messages=[{"content": "messagesecret"}],
    )
    (stored,) = server_bank.add(ALICE, [secret])
    server_bank.add(ALICE, [memory("harmless"), memory("velora other")])
    words = [b"velorasecret", b"sourcesecret", b"sessionsecret", b"metasecret", b"messagesecret"]

    def left() -> set[bytes]:
        postgres.checkpoint()
        tables = [path for path in (postgres.data / "base").rglob("*") if path.stem.isdigit()]
        found = b"".join(path.read_bytes() for path in tables if path.is_file())
        assert b"harmless" in found
        return {word for word in words if word in found}

    assert left() == set(words)
    server_bank.delete(ALICE, [stored.id])
    server_bank.clear(ALICE, "sessionsecret")
    server_bank.purge()
    assert left() == set()
    assert len(server_bank.search(ALICE, "harmless")) == 1


def test_the_server_keeps_no_samples_of_what_is_remembered(
    server_bank: Storage, postgres: PostgresServer
) -> None:
    """They would be in a table that a purge cannot rewrite."""
    for place in ("one", "two", "one more"):
        told: Any = {"messages": [{"content": place}], "metadata": {"k": place}}
        server_bank.add(ALICE, [memory(place, session=place, message_id=place, **told)])
        server_bank.add(BOB, [memory(place, role="document", source=place, ordinal=0)])
        server_bank.items.put(
            "t", NewItem(("a",), place, {"k": place}, vectors=vector_of("a")[None])
        )
    postgres.checkpoint()
    with server_bank._db.scope() as conn:
        kept = conn.exec_driver_sql(
            "SELECT tablename || '.' || attname FROM pg_stats WHERE schemaname = current_schema() "
            "AND coalesce(most_common_vals, histogram_bounds)::text ~ '[a-z]'"
        )
        assert set(kept.scalars()) == {"events.op", "memories.recallable", "migrations.name"}


def test_a_purge_waits_for_those_who_still_read_the_old_rows(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    with Storage.open(tmp_path / "bank", database=postgres.url(), timeout_s=0.2) as bank:
        bank.claim(MODEL, SPEC)
        (stored,) = bank.add(ALICE, [memory("a")])
        with bank._db.scope() as conn:
            conn.exec_driver_sql("SELECT count(*) FROM meta").scalar()
            bank.delete(ALICE, [stored.id], purge=False)
            with pytest.raises(StoreLockedError):
                bank.purge()
        bank.purge()


def test_tables_and_migrations_agree(server_bank: Storage) -> None:
    with server_bank._db.scope() as conn:
        schema = inspect(conn)
        for table in models.metadata.tables.values():
            made = {column["name"]: column for column in schema.get_columns(table.name)}
            assert set(made) == {column.name for column in table.columns}
            for column in table.columns:
                assert made[column.name]["nullable"] == column.nullable
                assert made[column.name]["type"].python_type is _kept_as(column)
            keys = {
                (key["constrained_columns"][0], key["referred_table"], key["options"]["ondelete"])
                for key in schema.get_foreign_keys(table.name)
            }
            declared = {
                (key.parent.name, key.column.table.name, key.ondelete) for key in table.foreign_keys
            }
            assert keys == declared


def _kept_as(column: Column[Any]) -> type:
    kind = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
    return kind.python_type


def m900_add_mood(conn: Connection) -> None:
    conn.exec_driver_sql("ALTER TABLE memories ADD COLUMN mood TEXT NOT NULL DEFAULT 'glad'")


def m901_break(conn: Connection) -> None:
    conn.exec_driver_sql("ALTER TABLE absent ADD COLUMN half TEXT")


def test_an_older_bank_is_refused_and_upgraded_on_demand_or_not_at_all(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    url, later = postgres.url(), (*MIGRATIONS, Migration(900, "m900_add_mood", m900_add_mood))
    with Storage.open(tmp_path / "bank", database=url) as bank:
        bank.claim(MODEL, SPEC)
        bank.add(ALICE, [memory("before")])
        newest = MIGRATIONS[-1].name
        with pytest.raises(StoreVersionError, match=r"needs m900.*pg_dump.*--database URL"):
            prepare(bank._db, NOON, known=later)
        broken = (*later, Migration(901, "m901_break", m901_break))
        with pytest.raises(ConfigError, match=r"no backup.*pg_dump.*--database URL --backed-up"):
            upgrade(tmp_path / "bank", database=url, known=later)
        with pytest.raises(StoreError, match="report it"):
            upgrade(tmp_path / "bank", database=url, known=broken, backed_up=True)
        with bank._db.scope() as conn:
            assert applied(conn)[-1] == newest
        done = upgrade(tmp_path / "bank", database=url, known=later, backed_up=True)
        assert (done.before, done.steps, done.backup) == (newest, ("m900_add_mood",), None)
        assert upgrade(tmp_path / "bank", database=url, known=later).steps == ()
        assert [each.text for each in bank.list_memories(ALICE)] == ["before"]
    for use in (Storage.open, upgrade):
        with pytest.raises(StoreVersionError, match="Upgrade the package"):
            use(tmp_path / "bank", database=url)
    with pytest.raises(StoreError, match="There is no bank"):
        upgrade(tmp_path / "nothing", database=url)


def test_long_names_are_refused_in_one_sentence(server_bank: Storage) -> None:
    unpacked = "".join(random.Random(0).choices("abcdefghijklmnop", k=20_000))
    with pytest.raises(ConfigError, match=r"Use a shorter name, key or source"):
        server_bank.add(ALICE, [memory("a", role="document", source=unpacked)])
    assert server_bank.stats() == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="is about servers that root starts")
def test_the_server_of_the_tests_does_not_run_as_root(postgres: PostgresServer) -> None:
    assert (postgres.data / "postmaster.pid").stat().st_uid != 0


def test_commands_in_errors_name_folder_and_database_apart(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    url, folder = postgres.url(), tmp_path / "a bank"
    with Storage.open(folder, database=url) as bank:
        bank.claim(MODEL, SPEC)
        with pytest.raises(IncompatibleMemoryError) as refused:
            bank.claim(Identity({**MODEL.parts, "embeddings": "cccc"}), SPEC)
        command = f"memlong rebuild --bank '{folder}' --database URL --model NAME"
        assert str(refused.value).endswith(command)


def test_tables_of_another_program_with_our_names_are_no_bug(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    url = postgres.url()
    engine = create_engine(url)
    with engine.begin() as conn:
        conn.exec_driver_sql("CREATE TABLE migrations (id int, migration text, batch int)")
    engine.dispose()
    with pytest.raises(StoreError, match="is not a memory bank"):
        Storage.open(tmp_path / "bank", database=url)
