"""Encrypted banks: no plain byte on disk, no door without the key, nothing moved unnoticed, and the
same answers as a plain bank gives."""

from __future__ import annotations

import itertools
import os
import random
import sqlite3
import string
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_making import ALICE, BOB, EMBEDDER, MODEL, SPEC, Clock, chunk, kv_of, memory, vector_of
from postgres_server import PostgresServer
from sqlalchemy import text as sql

from memlong_agent.errors import ConfigError, StoreCorruptError, StoreKeyError, StoreVersionError
from memlong_agent.storage import Binding, Key, NewItem, RecallMark, Storage, reads
from memlong_agent.storage.conversion import encrypt

KEY = Key(bytes(range(32)))
_TABLES = ("memories", "chunks", "vectors", "items", "blobs", "meta")


def opened(folder: Path, key: Key | None = KEY, **options: Any) -> Storage:
    bank = Storage.open(folder, key=key, **options)
    bank.claim(MODEL, SPEC)
    bank.claim_retrieval(EMBEDDER)
    return bank


def bytes_of(folder: Path) -> dict[Path, bytes]:
    """Every file of a bank, log and shared memory too."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def traces(folder: Path, needles: list[bytes]) -> list[tuple[str, bytes]]:
    """Where one of the needles, or its words in the case of the word index, stands in a file."""
    wanted = [needle for each in needles for needle in {each, each.lower()}]
    return [
        (path.name, needle)
        for path, data in bytes_of(folder).items()
        for needle in wanted
        if needle in data
    ]


def secrets_of(*texts: str) -> list[bytes]:
    """What must not be found: texts, and the first bytes of their K/V and vectors."""
    found = [text.encode() for text in texts]
    for text in texts:
        keys = kv_of(text, 5).keys.contiguous().view(torch.uint8)
        found += [keys.numpy().tobytes()[:24], vector_of(text).tobytes()[:12]]
    return found


TOKEN_IDS = (70_000).to_bytes(4, "little") + (70_001).to_bytes(4, "little")


def test_no_byte_of_what_was_said_is_in_any_file(tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    texts = [f"Xanthippe{n} keeps the Quarzkristall{n}" for n in range(6)]
    needles = [*secrets_of(*texts), TOKEN_IDS, b"Xanthippe", b"Quarzkristall", b"Geheimquelle"]
    needles += [b"Gutelaune", b"Postfachwert", b"[header]", b'"__metadata__"']
    with opened(folder) as bank:
        stored = bank.add(
            ALICE,
            [
                memory(text, source="Geheimquelle.txt", metadata={"mood": "Gutelaune"},
                       messages=[{"role": "user", "content": text}], session="s")
                for text in texts[:4]
            ],
        )  # fmt: skip
        bank.add(ALICE, [memory(texts[4], role="document", source="Geheimquelle.txt", ordinal=0)])
        bank.items.put(
            "t",
            NewItem(("a", "b"), "k", {"x": "Postfachwert"}, vectors=vector_of(texts[5])[None],
                    bound=Binding(ALICE, stored[3].id)),
        )  # fmt: skip
        bank.replace(ALICE, stored[1].id, memory(texts[5]))
        assert traces(folder, needles) == []
        assert bank.search(ALICE, "xanthippe2 quarzkristall2") != []
        bank.record_recalls(ALICE, "turn", [RecallMark(stored[2].chunk_pks[0], 0, 0.5)])
        bank.delete(ALICE, [stored[0].id])
        bank.delete_chunks(ALICE, stored[2].chunk_pks)
        assert traces(folder, needles) == []
        bank.purge()
        assert bank.verify() == []
    assert traces(folder, needles) == []
    with opened(folder) as bank:
        assert {each.text for each in bank.list_memories(ALICE)} == {texts[5], texts[3], texts[4]}
        assert bank.items.list("t", limit=9)[0].value == {"x": "Postfachwert"}
        assert traces(folder, needles) == []
    assert b"alice" in (folder / "bank.sqlite").read_bytes()  # the search can find; owners show


def test_a_plain_bank_shows_all_of_it(tmp_path: Path) -> None:
    """The probe of the test above is no blind one."""
    with opened(tmp_path / "bank", None) as bank:
        bank.add(
            ALICE, [memory("Xanthippe", source="Geheimquelle.txt", metadata={"a": "Gutelaune"})]
        )
        found = {
            needle for _, needle in traces(tmp_path / "bank", [*secrets_of("Xanthippe"), TOKEN_IDS])
        }
    assert found >= {*secrets_of("Xanthippe"), TOKEN_IDS, b"xanthippe"}


def test_the_key_opens_and_nothing_else_does(tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    with opened(folder) as bank:
        bank.add(ALICE, [memory("my dog is called Rex")])
    before = bytes_of(folder)
    with pytest.raises(StoreKeyError, match=r"is encrypted\. Give its key.*MEMLONG_KEY"):
        Storage.open(folder)
    with pytest.raises(StoreKeyError, match=r"not the key of the bank at .*encrypted with"):
        Storage.open(folder, key=Key(bytes(32)))
    with pytest.raises(StoreKeyError):
        Storage.open(folder, key=Key(b"correct horse battery", passphrase=True))
    assert bytes_of(folder).keys() == before.keys()
    assert bytes_of(folder)[folder / "bank.sqlite"] == before[folder / "bank.sqlite"]
    with opened(folder) as bank:
        assert [each.text for each in bank.list_memories(ALICE)] == ["my dog is called Rex"]


@pytest.mark.parametrize("key", [None, Key(bytes(32)), KEY])
def test_another_schema_is_said_before_the_key_is_asked_for(
    tmp_path: Path, key: Key | None
) -> None:
    """`memlong upgrade` needs no key."""
    opened(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "bank.sqlite")) as conn:
        conn.execute("INSERT INTO migrations VALUES (900, 'm900_next', 0)")
        conn.commit()
    with pytest.raises(StoreVersionError, match=r"has schema m900_next.*Upgrade the package"):
        Storage.open(tmp_path, key=key)


def test_a_key_for_a_plain_bank_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    opened(folder, None).close()
    with pytest.raises(StoreKeyError, match=r"not encrypted, but a key was given.*memlong encrypt"):
        Storage.open(folder, key=KEY)
    opened(folder, None).close()


def test_a_bank_that_was_made_but_never_used_takes_a_key(tmp_path: Path) -> None:
    """As after a crash between making the tables and sealing them."""
    Storage.open(tmp_path / "bank").close()
    with opened(tmp_path / "bank") as bank:
        bank.add(ALICE, [memory("my dog is called Rex")])
    with pytest.raises(StoreKeyError):
        Storage.open(tmp_path / "bank")


def swapped(folder: Path, table: str, columns: str, first: str, second: str) -> None:
    """Exchange columns of two rows, as somebody could who has the disk but not the key."""
    names = columns.split(", ")
    with closing(sqlite3.connect(folder / "bank.sqlite")) as conn:
        a, b = (
            conn.execute(f"SELECT {columns} FROM {table} WHERE {where}").fetchone()
            for where in (first, second)
        )
        assert a != b
        sets = ", ".join(f"{name} = ?" for name in names)
        conn.execute("PRAGMA foreign_keys = OFF")
        for where, values in ((first, [-1] * len(names)), (second, a), (first, b)):
            conn.execute(f"UPDATE {table} SET {sets} WHERE {where}", values)
        conn.commit()


@pytest.mark.parametrize(
    ("table", "columns", "key"),
    [
        ("memories", "text", "pk"),
        ("memories", "messages", "pk"),
        ("memories", "metadata", "pk"),
        ("memories", "source", "pk"),
        ("chunks", "text", "pk"),
        ("chunks", "header", "pk"),
        ("chunks", "token_ids", "pk"),
        ("chunks", "header, text, token_ids", "pk"),
        ("chunks", "memory_pk", "pk"),
        ("vectors", "vector", "chunk_pk"),
        ("blobs", "checksum, nbytes", "chunk_pk"),
        ("items", "value", "pk"),
        ("items", "vectors", "pk"),
    ],
)
def test_swapped_rows_are_noticed(tmp_path: Path, table: str, columns: str, key: str) -> None:
    folder = tmp_path / "bank"
    with opened(folder) as bank:
        for name in "ab":
            bank.add(
                ALICE,
                [memory(name, source=name, messages=[{"role": "user", "content": name}])],
            )
            bank.items.put("t", NewItem(("n",), name, {"v": name}, vectors=vector_of(name)[None]))
    swapped(folder, table, columns, f"{key} = 1", f"{key} = 2")
    with pytest.raises(StoreCorruptError, match="moved there"), opened(folder) as bank:
        read_all(bank)


def read_all(bank: Storage) -> None:
    for stored in bank.list_memories(ALICE):
        bank.chunks(ALICE, stored.chunk_pks)
        bank.read_kv(stored.chunk_pks)
    for _ in bank.vectors(ALICE):
        pass
    bank.items.list("t", limit=9, vectors=True)


def test_swapped_files_are_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    with opened(folder) as bank:
        pks = [bank.add(ALICE, [memory(name)])[0].chunk_pks[0] for name in "ab"]
        one, two = sorted(folder.glob("kv/*/*.safetensors"))
        data = one.read_bytes(), two.read_bytes()
        assert len(data[0]) == len(data[1])
        one.write_bytes(data[1])
        two.write_bytes(data[0])
        for pk in pks:
            with pytest.raises(StoreCorruptError, match="is damaged: expected checksum"):
                bank.read_kv([pk])


def test_a_row_of_blobs_moved_whole_is_noticed(tmp_path: Path) -> None:
    """Row and file belong together then, but the chunk is not theirs."""
    folder = tmp_path / "bank"
    with opened(folder) as bank:
        for name in "ab":
            bank.add(ALICE, [memory(name)])
    with closing(sqlite3.connect(folder / "bank.sqlite")) as conn:
        for old, new in ((1, 99), (2, 1), (99, 2)):
            conn.execute("UPDATE blobs SET chunk_pk = ? WHERE chunk_pk = ?", (new, old))
        conn.commit()
    with opened(folder) as bank, pytest.raises(StoreCorruptError, match=r"blobs\.checksum"):
        bank.read_kv([1])


def test_a_plain_text_planted_in_a_row_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    with opened(folder) as bank:
        bank.add(ALICE, [memory("my dog is called Rex")])
    with closing(sqlite3.connect(folder / "bank.sqlite")) as conn:
        conn.execute("UPDATE memories SET text = 'my dog is called Max'")
        conn.commit()
    with opened(folder) as bank, pytest.raises(StoreCorruptError, match=r"memories\.text"):
        bank.list_memories(ALICE)


def test_documents_are_unique_by_their_source_too(tmp_path: Path) -> None:
    with opened(tmp_path / "bank") as bank:

        def add(text: str, source: str | None, ordinal: int = 0) -> str:
            new = memory(text, role="document", source=source, ordinal=ordinal)
            return bank.add(ALICE, [new])[0].id

        first = add("text", "a.txt")
        assert add("text", "a.txt") == first
        others = [
            add("text", "b.txt"),
            add("text", None),
            add("text", "a.txt", 1),
            add("t", "a.txt"),
        ]
        assert len({first, *others}) == 5
        assert add("text", None) == others[1]
        (mine,) = bank.add(ALICE, [memory("x", message_id="m", source="a")])
        (same,) = bank.add(ALICE, [memory("x", message_id="m", source="a")])
        assert mine.id == same.id and mine.chunk_pks == same.chunk_pks


def twins(tmp_path: Path, clock: Clock) -> Iterator[tuple[Storage, Storage]]:
    with (
        opened(tmp_path / "plain", None, clock=clock) as plain,
        opened(tmp_path / "sealed", clock=clock) as sealed,
    ):
        yield plain, sealed


def test_ranks_are_those_of_a_plain_bank(tmp_path: Path, clock: Clock) -> None:
    rng = random.Random(4)
    words = [
        "".join(each) for each in itertools.product("bdfg", "aeiou", "klmn", string.digits[:3])
    ]
    for plain, sealed in twins(tmp_path, clock):
        ids: list[str] = []
        for step in range(40):
            owner = rng.choice([ALICE, ALICE, BOB])
            texts = [" ".join(rng.choices(words, k=8)) for _ in range(rng.randint(1, 4))]
            new_id = f"{step:032x}"
            for bank in (plain, sealed):
                bank.add(owner, [memory(*texts, id=new_id)])
            if owner is ALICE:
                ids.append(new_id)
            if step % 5 == 4:
                gone = ids.pop(rng.randrange(len(ids)))
                for bank in (plain, sealed):
                    bank.delete(ALICE, [gone])
            if step % 7 == 6:
                for bank in (plain, sealed):
                    bank.replace(ALICE, ids[0], memory(" ".join(texts)))
            question = " ".join(rng.choices(words, k=6))
            for owner in (ALICE, BOB):
                assert sealed.search(owner, question) == plain.search(owner, question)
        assert sealed.search(ALICE, " ".join(words[:40])) != []
        sealed.close()
        with opened(tmp_path / "sealed", clock=clock) as again:
            for _ in range(20):
                question = " ".join(rng.choices(words, k=6))
                assert again.search(ALICE, question) == plain.search(ALICE, question)
            assert again.verify() == []


def test_the_index_follows_what_others_write(tmp_path: Path) -> None:
    with opened(tmp_path / "bank") as one, opened(tmp_path / "bank") as two:
        (stored,) = one.add(ALICE, [memory("the velora stone")])
        assert [hit.chunk.text for hit in two.search(ALICE, "velora")] == ["the velora stone"]
        two.replace(ALICE, stored.id, memory("an amber stone"))
        assert one.search(ALICE, "velora") == []
        assert [hit.chunk.text for hit in one.search(ALICE, "amber")] == ["an amber stone"]
        two.delete(ALICE, [stored.id])
        assert one.search(ALICE, "amber stone") == []
        assert one.verify() == two.verify() == []


def test_a_write_that_fails_leaves_no_word_behind(tmp_path: Path) -> None:
    with opened(tmp_path / "bank") as bank:
        bank.add(ALICE, [memory("amber")])
        broken = replace(
            memory("velora"), chunks=[replace(chunk("velora"), vector=vector_of("velora", 7))]
        )
        with pytest.raises(ConfigError, match="length 6"):
            bank.add(ALICE, [memory("quartz"), broken])
        assert bank.search(ALICE, "velora quartz") == []
        assert [hit.chunk.text for hit in bank.search(ALICE, "amber")] == ["amber"]
        assert bank.verify() == []


def test_a_forked_child_searches_too(tmp_path: Path) -> None:
    with opened(tmp_path / "bank") as bank:
        bank.add(ALICE, [memory("velora")])
        assert bank.search(ALICE, "velora") != []
        child = os.fork()
        if child == 0:
            os._exit(0 if len(bank.search(ALICE, "velora")) == 1 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_word_index_is_on_disk(tmp_path: Path) -> None:
    opened(tmp_path / "bank").close()
    with closing(sqlite3.connect(tmp_path / "bank" / "bank.sqlite")) as conn:
        names = {name for (name,) in conn.execute("SELECT name FROM sqlite_master")}
        secret = conn.execute("SELECT value FROM meta WHERE key = 'secret'").fetchone()[0]
    assert "memories" in names and not any("lexical" in name for name in names)
    assert secret.startswith("sealed:")


def test_in_postgresql_too(tmp_path: Path, clock: Clock, postgres: Any) -> None:
    url = postgres.url()
    with opened(tmp_path / "sealed", database=url, clock=clock) as sealed:
        (stored,) = sealed.add(ALICE, [memory("the velora stone", source="a.txt")])
        sealed.items.put("t", NewItem(("n",), "k", {"v": 1}))
        with sealed._db.scope() as conn:
            rows = [conn.execute(sql(f"SELECT * FROM {name}")).all() for name in _TABLES]
            here = conn.execute(sql("SELECT to_regclass('postings')")).scalar()
        assert here is None and "velora" not in str(rows) and "a.txt" not in str(rows)
        assert str(rows).count("sealed:") >= 6
        assert [hit.chunk.text for hit in sealed.search(ALICE, "velora")] == ["the velora stone"]
        sealed.delete(ALICE, [stored.id])
        assert sealed.verify() == []
        files = [path for path in (tmp_path / "sealed").rglob("*") if path.is_file()]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    with pytest.raises(StoreKeyError, match="is encrypted"):
        Storage.open(tmp_path / "sealed", database=url)


def test_a_bank_in_postgresql_is_encrypted(
    tmp_path: Path, clock: Clock, postgres: PostgresServer
) -> None:
    url = postgres.url()
    with opened(tmp_path / "bank", None, database=url, clock=clock) as plain:
        plain.add(ALICE, [memory("the Wolkenkuckuck stone", source="Nebelheim.txt")])
        before = plain.list_memories(ALICE), plain.search(ALICE, "Wolkenkuckuck")

    def shown() -> set[bytes]:
        postgres.checkpoint()
        kept = [*postgres.data.rglob("*"), *(tmp_path / "bank").rglob("*")]
        files = [path for path in kept if path.is_file() and "pg_wal" not in path.parts]
        found = b"".join(path.read_bytes() for path in files)
        return {word for word in (b"olkenkuckuck", b"ebelheim") if word in found}

    assert len(shown()) == 2
    assert encrypt(tmp_path / "bank", KEY, database=url)
    assert shown() == set()
    with opened(tmp_path / "bank", database=url, clock=clock) as sealed:
        assert (sealed.list_memories(ALICE), sealed.search(ALICE, "Wolkenkuckuck")) == before
        read_all(sealed)
        assert sealed.verify() == []


def test_one_damaged_text_is_named_and_can_be_forgotten(tmp_path: Path) -> None:
    with opened(tmp_path / "bank") as bank:
        bad, good = bank.add(ALICE, [memory("the house is blue"), memory("the boat is red")])
        bank.items.put("t", NewItem(("a",), "k", {"x": 1}))
    with closing(sqlite3.connect(tmp_path / "bank" / "bank.sqlite")) as raw, raw:
        change = "UPDATE chunks SET text = 'sealed:' || substr(text, 12) WHERE memory_pk = ?"
        raw.execute(change, (bad.pk,))
        raw.execute("UPDATE items SET value = replace(value, 'sealed:', 'sealed:AAAA')")
        seal = "UPDATE blobs SET checksum = 'sealed:AAAA' WHERE chunk_pk = ?"
        raw.execute(seal, (bad.chunk_pks[0],))
    with opened(tmp_path / "bank") as bank:
        assert [hit.chunk.text for hit in bank.search(ALICE, "boat")] == ["the boat is red"]
        said = "\n".join(bank.verify())
        for name in ("chunks.text", "blobs.checksum"):
            assert f"{name} of {bad.id}/0 cannot be opened" in said
        assert "items.value" in said and good.id not in said
        with bank._db.scope() as conn:
            ref = reads.blob_refs(conn, good.chunk_pks)[good.chunk_pks[0]]
        bank._blobs.remove([ref.blob_id])
        (done,) = bank.repair(
            lambda chunks: [kv_of(each.text, each.tokens) for each in chunks],
            lambda chunks: [vector_of(each.text) for each in chunks],
        )
        assert done == "the keys and values of 1 chunks were made anew"
        bank.delete(ALICE, [bad.id])
        bank.items.delete("t", ("a",), "k")
        assert bank.verify() == []
