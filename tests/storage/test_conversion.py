"""A plain bank is encrypted: all of it or nothing, and no plain byte stays in its folder."""

from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bank_making import ALICE, BOB, EMBEDDER, MODEL, SPEC, memory, vector_of
from sqlalchemy import delete
from test_encrypted_bank import KEY, TOKEN_IDS, bytes_of, opened, read_all, secrets_of, traces

from memlong_agent.errors import (
    IncompatibleMemoryError,
    StoreCorruptError,
    StoreError,
    StoreKeyError,
)
from memlong_agent.identity import Identity
from memlong_agent.storage import Key, NewItem, Rebuilding, Storage
from memlong_agent.storage.conversion import change_key, encrypt
from memlong_agent.storage.models import meta
from memlong_agent.storage.sqlite import SqliteDatabase

TEXTS = [f"Xanthippe{n} keeps the Quarzkristall{n}" for n in range(6)]
NEEDLES = [*secrets_of(*TEXTS), TOKEN_IDS, b"Quarzkristall", b"Geheimquelle", b"Postfachwert"]
NEEDLES += [b"Gutelaune", b"[header]", b'"__metadata__"']
OTHER = Key(b"correct horse battery", passphrase=True)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A closed plain bank with some of everything, and some of it forgotten."""
    with opened(tmp_path / "bank", None) as bank:
        fill(bank)
    return tmp_path / "bank"


def fill(bank: Storage) -> None:
    fields: dict[str, Any] = {"source": "Geheimquelle.txt", "metadata": {"mood": "Gutelaune"}}
    said = [{"role": "user", "content": TEXTS[0]}]
    bank.add(ALICE, [memory(TEXTS[0], messages=said, session="s", message_id="m", **fields)])
    bank.add(BOB, [memory(*TEXTS[1:3], role="document", ordinal=0, **fields)])
    (trimmed,) = bank.add(BOB, [memory(*TEXTS[3:5], role="document", ordinal=1, **fields)])
    bank.delete_chunks(BOB, trimmed.chunk_pks[:1])
    (gone,) = bank.add(ALICE, [memory(TEXTS[5])])
    bank.delete(ALICE, [gone.id])
    value = {"x": "Postfachwert"}
    bank.items.put("t", NewItem(("a",), "k", value, vectors=vector_of(TEXTS[5])[None]))
    bank.items.put("t", NewItem(("a",), "without vectors", {}))


def contents(bank: Storage) -> list[object]:
    """All that a bank gives back, in an order of its own."""
    found: list[object] = []
    for owner in (ALICE, BOB):
        stored = bank.list_memories(owner)
        pks = [pk for each in stored for pk in each.chunk_pks]
        found += [stored, bank.chunks(owner, pks), bank.search(owner, " ".join(TEXTS))]
        found += [(pks.tolist(), matrix.tolist()) for pks, matrix in bank.vectors(owner)]
        found += [(kv.keys.tolist(), kv.values.tolist()) for kv in bank.read_kv(pks)]
    items = bank.items.list("t", limit=9, vectors=True)
    return found + [
        (i.key, i.value, None if i.vectors is None else i.vectors.tolist()) for i in items
    ]


def test_a_bank_that_lost_its_wal_mode_is_encrypted_too(plain: Path) -> None:
    """As a copy that SQLite's own backup made: the first connection switches it."""
    with closing(sqlite3.connect(plain / "bank.sqlite")) as conn:
        conn.execute("PRAGMA journal_mode = DELETE")
    maker = SqliteDatabase(plain, 1.0)
    with ThreadPoolExecutor(1) as pool:
        with maker.exclusive(), closing(sqlite3.connect(plain / "bank.sqlite")) as other:
            other.execute("BEGIN IMMEDIATE")
            done = pool.submit(encrypt, plain, KEY, timeout_s=10.0)
            assert not wait([done], 0.3).done
        assert done.result()
    maker.close()


def test_everything_comes_back_and_nothing_plain_stays(plain: Path) -> None:
    assert {needle for _, needle in traces(plain, NEEDLES)} > {b"Gutelaune", b"quarzkristall"}
    with opened(plain, None) as bank:
        before = contents(bank)
    (plain / "bank.sqlite.m001_create.bak").write_bytes((plain / "bank.sqlite").read_bytes())
    shown: list[tuple[int, int]] = []
    assert encrypt(plain, KEY, on_progress=lambda *seen: shown.append(seen))
    assert shown[-1] == (4, 4)
    assert traces(plain, NEEDLES) == []
    with pytest.raises(StoreKeyError):
        Storage.open(plain)
    with opened(plain) as bank:
        assert contents(bank) == before
        assert bank.verify() == []
        bank.add(ALICE, [memory(TEXTS[5], message_id="n")])
    assert traces(plain, NEEDLES) == []
    assert len([*plain.glob("kv/*/*")]) == 5


def test_what_was_written_before_is_not_written_twice_after(plain: Path) -> None:
    encrypt(plain, KEY)
    with opened(plain) as bank:
        before = {owner: len(bank.list_memories(owner)) for owner in (ALICE, BOB)}
        source = "Geheimquelle.txt"
        bank.add(ALICE, [memory(TEXTS[0], message_id="m", session="s", source=source)])
        bank.add(BOB, [memory(*TEXTS[1:3], role="document", ordinal=0, source=source)])
        bank.add(BOB, [memory(*TEXTS[3:5], role="document", ordinal=1, source=source)])  # trimmed
        assert {owner: len(bank.list_memories(owner)) for owner in (ALICE, BOB)} == before
        bank.add(BOB, [memory(*TEXTS[1:3], role="document", ordinal=0, source="another")])
        assert len(bank.list_memories(BOB)) == before[BOB] + 1


def test_a_second_time_changes_nothing(plain: Path) -> None:
    encrypt(plain, KEY)
    before = bytes_of(plain)
    assert not encrypt(plain, KEY)
    assert bytes_of(plain) == before
    with pytest.raises(StoreKeyError, match="not the key"):
        encrypt(plain, OTHER)


@pytest.mark.parametrize("seen", [1, 3, 4])
def test_killed_half_way_it_is_the_plain_bank(tmp_path: Path, plain: Path, seen: int) -> None:
    import memlong_agent.storage.conversion as conversion

    with opened(plain, None) as bank:
        before = contents(bank)

    def kill(done: int, _: int) -> None:
        if done >= seen:
            os._exit(9)

    child = os.fork()
    if child == 0:
        conversion._BATCH = 1
        encrypt(plain, KEY, on_progress=kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    with Storage.open(plain, grace_s=0) as bank:
        bank.claim(MODEL, SPEC)
        bank.claim_retrieval(EMBEDDER)
        assert contents(bank) == before
        assert bank.verify() == []
        bank.sweep()
        assert len([*plain.glob("kv/*/*")]) == 4
    assert encrypt(plain, KEY)
    assert traces(plain, NEEDLES) == []


def test_killed_before_the_cleaning_the_next_opening_cleans(plain: Path) -> None:
    """Rows are sealed and marked; the plain files, and a half-written one, are still there."""
    left = {path: path.read_bytes() for path in plain.glob("kv/*/*")}
    backup = plain / "bank.sqlite.m001_create.bak"
    encrypt(plain, KEY)
    for path, data in left.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    path.with_suffix(".tmp").write_bytes(data[:5000])
    backup.write_bytes(TEXTS[0].encode())
    with closing(sqlite3.connect(plain / "bank.sqlite")) as conn:
        conn.execute("INSERT INTO meta VALUES ('plain_left', '1')")
        conn.commit()
    assert traces(plain, NEEDLES) != []
    with opened(plain) as bank:
        read_all(bank)
        assert bank.verify() == []
        assert traces(plain, NEEDLES) == []
    with closing(sqlite3.connect(plain / "bank.sqlite")) as conn:
        assert conn.execute("SELECT count(*) FROM meta WHERE key = 'plain_left'").fetchone() == (0,)


def test_a_damaged_file_stops_it_and_nothing_changes(plain: Path) -> None:
    path = sorted(plain.glob("kv/*/*"))[-1]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\0")
    before = bytes_of(plain).keys()
    with pytest.raises(StoreCorruptError, match=path.name):
        encrypt(plain, KEY)
    path.write_bytes(data)
    assert {each for each in bytes_of(plain) if each.parent.name != "bank"} == {
        each for each in before if each.parent.name != "bank"
    }
    with opened(plain, None) as bank:
        assert len(bank.list_memories(BOB)) == 2 and bank.verify() == []


def test_the_key_is_changed_in_one_row(plain: Path) -> None:
    encrypt(plain, KEY)
    with opened(plain) as bank:
        before = contents(bank)
    files = {path: path.read_bytes() for path in plain.glob("kv/*/*")}
    change_key(plain, KEY, OTHER)
    with pytest.raises(StoreKeyError, match="a passphrase"):
        Storage.open(plain, key=KEY)
    with opened(plain, OTHER) as bank:
        assert contents(bank) == before
    assert {path: path.read_bytes() for path in plain.glob("kv/*/*")} == files
    with pytest.raises(StoreKeyError):
        change_key(plain, KEY, OTHER)


def test_what_cannot_be_encrypted(tmp_path: Path, plain: Path) -> None:
    with pytest.raises(StoreError, match=r"There is no bank at .*nowhere"):
        encrypt(tmp_path / "nowhere", KEY)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(StoreKeyError, match=r"is not encrypted.*memlong encrypt"):
        change_key(plain, None, KEY)


def test_who_has_the_plain_bank_open_must_open_it_anew(plain: Path) -> None:
    with opened(plain, None) as early:
        encrypt(plain, KEY)
        with pytest.raises(StoreKeyError, match=r"was encrypted since.*Open it again"):
            early.list_memories(ALICE)
        with pytest.raises(StoreKeyError):
            early.items.put("t", NewItem(("a",), "k", {"x": "Postfachwert"}))
        with pytest.raises(StoreKeyError):
            early.add(ALICE, [memory("Quarzkristall")])
    assert traces(plain, NEEDLES) == []


def test_an_interrupted_rebuild_is_finished_first(plain: Path) -> None:
    before = bytes_of(plain)
    for kind, command in (("encoding", "--model NAME"), ("vectors", "--embedder NAME")):
        with Rebuilding.open(plain) as bank:
            bank.begin(kind, Identity({"changed": kind}), SPEC)  # type: ignore[arg-type]
        with pytest.raises(IncompatibleMemoryError, match=f"same command.*{command}$"):
            encrypt(plain, KEY)
        with Rebuilding.open(plain) as bank, bank._db.scope(write=True) as conn:
            conn.execute(delete(meta).where(meta.c.key == "rebuild"))
    assert before.keys() == bytes_of(plain).keys()


def test_a_rebuild_of_a_bank_that_was_encrypted_meanwhile_writes_nothing_plain(plain: Path) -> None:
    with Rebuilding.open(plain) as bank:
        encrypt(plain, KEY)
        with pytest.raises(StoreKeyError, match="was encrypted since it was opened"):
            bank.begin("vectors", Identity({"embedder": "other"}))
    assert traces(plain, NEEDLES) == []
