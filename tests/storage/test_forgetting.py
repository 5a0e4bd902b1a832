"""Forgetting in the storage room: what goes, what is mentioned, what other processes notice."""

from __future__ import annotations

import random
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bank_making import ALICE, BOB, MODEL, NOON, SPEC, Clock, memory

from memlong_agent.errors import ConfigError, StoreLockedError
from memlong_agent.storage import Binding, NewItem, NewMemory, Owner, RecallMark, Storage, matching
from memlong_agent.storage import scrub as scrubbing
from memlong_agent.storage.matching import folded, holds, pattern
from memlong_agent.storage.sqlite import SqliteDatabase


def texts(bank: Storage, owner: Owner = ALICE) -> list[str]:
    return [each.text for each in bank.list_memories(owner, newest_first=False)]


def put(bank: Storage, *each: NewMemory, owner: Owner = ALICE) -> list[str]:
    return [stored.id for stored in bank.add(owner, each)]


def recall(bank: Storage, turn: str, memory_id: str) -> None:
    pks = bank.get(ALICE, memory_id).chunk_pks
    bank.record_recalls(ALICE, turn, [RecallMark(pk, 0, 0.5) for pk in pks])


def found(bank: Storage, text: str) -> list[str]:
    return [hit.chunk.text for hit in bank.search(ALICE, text)]


@pytest.mark.parametrize(
    ("needle", "haystack", "there"),
    [
        ("Rex", "my dog rex", True),
        ("my  dog\n", "MY\t dog barks", True),
        ("straße", "STRASSE 5", True),
        ("café", "cafe\u0301", True),
        ("12", "\uff11\uff12 o'clock", True),
        ("a.c", "abc", False),
        ("rex the dog", "rexthe dog", False),
        ("dog", "hotdogs", True),
        ("İstanbul", "i\u0307stanbul", True),
    ],
)
def test_what_contains_a_text(needle: str, haystack: str, there: bool) -> None:
    assert holds(pattern(needle), [haystack]) is there
    assert folded(folded(needle)) == folded(needle)


def test_a_blank_text_is_refused(bank: Storage) -> None:
    put(bank, memory("a"))
    with pytest.raises(ConfigError, match="not blank"):
        bank.forget(ALICE, " \n")
    assert texts(bank) == ["a"]


def test_every_place_of_a_text_is_searched(bank: Storage) -> None:
    put(
        bank,
        memory("in the text Velmor"),
        memory("said", messages=[{"role": "user", "content": "we sailed to VELMOR"}]),
        memory("from", source="velmor.txt"),
        memory("meta", metadata={"place": ["x", {"velmor": 1}]}),
        memory("known by", message_id="velmor-7"),
        memory("number", metadata={"phone": 555123}),
        NewMemory("user", "a summary", memory("the chunk says Velmor").chunks),
        memory("Velm or"),
        memory("nothing"),
    )
    put(bank, memory("Velmor is bob's too"), owner=BOB)
    assert bank.forget(ALICE, "velmor").memories == 6
    assert bank.forget(ALICE, "555123").memories == 1
    assert texts(bank) == ["Velm or", "nothing"] and texts(bank, BOB) == ["Velmor is bob's too"]
    assert bank.forget(ALICE, "velmor").memories == 0


def test_a_text_across_two_sections_is_in_both(bank: Storage) -> None:
    def section(text: str, ordinal: int, source: str = "a.txt") -> NewMemory:
        return memory(text, role="document", source=source, ordinal=ordinal)

    sections = [section("one two ", 0), section("secret ", 1), section("word is here. ", 2)]
    put(bank, *sections, section("the end", 3), section("word alone", 2, "b.txt"))
    assert bank.forget(ALICE, "Secret Word").memories == 2
    assert texts(bank) == ["one two ", "the end", "word alone"]


def test_items_go_with_what_they_hold_and_are_bound_to(bank: Storage) -> None:
    first, second = put(bank, memory("tea at five"), memory("dog rex"))
    for key, value, bound in (
        ("a", "tea", first),
        ("b", "Rex the dog", second),
        ("c", "rex", None),
    ):
        binding = None if bound is None else Binding(ALICE, bound)
        bank.items.put("t", NewItem(("n",), key, {"v": value}, bound=binding))
    assert bank.forget(ALICE, "rex the").memories == 1
    assert texts(bank) == ["tea at five"]
    # An item of nobody stays: it belongs to no owner.
    assert sorted(item.key for item in bank.items.list("t", (), limit=9)) == ["a", "c"]


def test_mentions_are_the_exchanges_that_recalled_it(bank: Storage) -> None:
    told, other = put(bank, memory("rex is a dog"), memory("the sky"))
    recall(bank, "t1", told)
    recall(bank, "t2", other)
    recall(bank, "t3", told)
    recall(bank, "t4", told)  # wrote nothing
    first, third = put(bank, memory("a dog", turn="t1"), memory("later", turn="t3"))
    (second,) = put(bank, memory("blue", turn="t2"))
    assert bank.delete(ALICE, [told]).mentions == (first, third)
    assert bank.delete(ALICE, [other, second]).mentions == ()
    assert texts(bank) == ["a dog", "later"]


def test_mentions_outlive_an_update(bank: Storage) -> None:
    (told,) = put(bank, memory("rex", session="s", message_id="m", source="x", expires_at=None))
    recall(bank, "t1", told)
    (answer,) = put(bank, memory("a dog", turn="t1"))
    stored, mentions = bank.update(ALICE, told, memory("bello", created_at=NOON))
    assert mentions == (answer,) and (stored.id, stored.text) == (told, "bello")
    assert (stored.session, stored.message_id, stored.source) == ("s", "m", "x")
    assert found(bank, "rex") == [] and found(bank, "bello") == ["bello"]
    assert bank.delete(ALICE, [told]).mentions == (answer,)


def test_a_superseded_memory_comes_back_when_the_newer_is_deleted(bank: Storage) -> None:
    (old,) = put(bank, memory("berlin town"))
    new, _ = bank.supersede(ALICE, old, memory("paris town"))
    newest, _ = bank.supersede(ALICE, new.id, memory("rome town"))
    with pytest.raises(ConfigError, match="superseded already"):
        bank.supersede(ALICE, old, memory("oslo town"))
    assert found(bank, "town") == ["rome town"] and len(texts(bank)) == 3
    bank.delete(ALICE, [new.id])  # in the middle: rome now stands for berlin
    assert found(bank, "town") == ["rome town"]
    assert bank.get(ALICE, old).superseded_by == newest.id
    bank.delete(ALICE, [newest.id])
    assert found(bank, "town") == ["berlin town"]


@pytest.mark.parametrize("way", ["forget", "expire", "evict"])
def test_a_superseded_memory_stays_hidden_when_the_newer_goes_otherwise(
    bank: Storage, clock: Clock, way: str
) -> None:
    (old,) = put(bank, memory("berlin town"))
    end = clock.now + timedelta(seconds=5)
    new, _ = bank.supersede(ALICE, old, memory("paris town", expires_at=end))
    clock.pass_s(10)
    if way == "forget":
        bank.forget(ALICE, "paris")
    elif way == "expire":
        assert bank.expire() == 1
    else:
        bank.delete_chunks(ALICE, new.chunk_pks)
    assert found(bank, "town") == [] and texts(bank) == ["berlin town"]


def test_the_number_rises_with_each_forgetting_and_not_else(bank: Storage, clock: Clock) -> None:
    one, two, three = put(bank, memory("a"), memory("b"), memory("c", "d"))
    put(bank, memory("bob"), owner=BOB)
    (ends,) = put(bank, memory("e", expires_at=clock.now + timedelta(seconds=1)))
    assert bank.times_forgotten(ALICE) == 0
    bank.delete_chunks(ALICE, bank.get(ALICE, three).chunk_pks[:1])
    recall(bank, "t", one)
    clock.pass_s(2)
    ways = [
        lambda: bank.expire(),
        lambda: bank.update(ALICE, one, memory("a2")),
        lambda: bank.supersede(ALICE, one, memory("a3")),
        lambda: bank.delete(ALICE, [two]),
        lambda: bank.forget(ALICE, "a3"),
        lambda: bank.clear(ALICE),
        lambda: bank.erase(ALICE),
    ]
    for number, way in enumerate(ways, start=1):
        assert bank.times_forgotten(ALICE) == number - 1
        way()
    put(bank, memory("anew"))
    assert bank.times_forgotten(ALICE) == 7
    assert ends not in {each.id for each in bank.list_memories(ALICE)}


def test_expiry_deletes_rows_files_and_items(folder_bank: Storage, clock: Clock) -> None:
    end = clock.now + timedelta(seconds=5)
    gone, _ = put(folder_bank, memory("tea", expires_at=end), memory("stays"))
    folder_bank.items.put("t", NewItem(("n",), "k", {"v": 1}, bound=Binding(ALICE, gone), ttl_s=5))
    assert folder_bank.expire() == 0 and not folder_bank.unpurged()
    clock.pass_s(5)
    assert folder_bank.expire() == 1 and folder_bank.expire() == 0
    assert texts(folder_bank) == ["stays"] and folder_bank.unpurged()
    assert folder_bank.stats()[ALICE].chunks == 1 and folder_bank.verify() == []


def test_what_has_expired_goes_when_the_bank_is_opened(tmp_path: Path, clock: Clock) -> None:
    with Storage.open(tmp_path / "bank", clock=clock) as bank:
        bank.claim(MODEL, SPEC)
        put(bank, memory("gonesoon", expires_at=clock.now + timedelta(seconds=5)), memory("stays"))
    clock.pass_s(6)
    with Storage.open(tmp_path / "bank", clock=clock) as bank:
        assert texts(bank) == ["stays"] and not bank.unpurged()
    assert b"gonesoon" not in (tmp_path / "bank" / "bank.sqlite").read_bytes()


def test_an_erased_owner_leaves_no_name(folder_bank: Storage, tmp_path: Path) -> None:
    bank, carol = folder_bank, Owner("default", "user", "carolina")
    put(bank, memory("rex", session="carols", turn="t"), memory("tea"), owner=carol)
    put(bank, memory("stays"))
    seen = bank.last_event(ALICE)
    assert bank.erase(carol).memories == 2
    assert bank.stats().keys() == {ALICE} and bank.last_event(ALICE) == seen
    files = [path.read_bytes() for path in (tmp_path / "bank").rglob("*") if path.is_file()]
    assert not any(b"carol" in data for data in files) and any(b"stays" in data for data in files)
    assert bank.erase(carol).memories == 0
    put(bank, memory("anew"), owner=carol)
    assert texts(bank, carol) == ["anew"] and bank.verify() == []


def test_a_purge_says_when_others_are_in_the_way(tmp_path: Path) -> None:
    with Storage.open(tmp_path / "bank", timeout_s=0.3) as bank:
        bank.claim(MODEL, SPEC)
        (told,) = put(bank, memory("rexsecret"))
        reader = sqlite3.connect(tmp_path / "bank" / "bank.sqlite", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM memories").fetchall()
        with pytest.raises(StoreLockedError, match=r"gone from rows and K/V files.*memlong doctor"):
            bank.delete(ALICE, [told])
        assert texts(bank) == [] and bank.unpurged()
        reader.close()
        bank.purge()
        assert not bank.unpurged()
        assert b"rexsecret" not in (tmp_path / "bank" / "bank.sqlite").read_bytes()


def test_unused_room_of_pages_is_zeroed_and_nothing_else(tmp_path: Path) -> None:
    """Rows of all sizes come, change and go; SQLite's own secure_delete leaves copies of some."""
    db, chance = SqliteDatabase(tmp_path, 5.0), random.Random(3)
    live, gone = {}, []
    with db.scope(write=True) as conn:
        conn.exec_driver_sql("CREATE TABLE t (pk INTEGER PRIMARY KEY, text TEXT, at INTEGER)")
        conn.exec_driver_sql("CREATE INDEX by_text ON t (text)")
    for block in range(12):
        with db.scope(write=True) as conn:
            for place in range(250):
                pk, word = block * 1000 + place, f"CAN{block:04d}{place:04d}Q"
                live[pk] = " ".join([word] * chance.choice([1, 4, 20, 120, 900]))
                conn.exec_driver_sql("INSERT INTO t VALUES (?, ?, 0)", (pk, live[pk]))
                some = chance.choice(sorted(live))
                if place % 2:
                    at = chance.choice([1, 10**6, 10**15])
                    conn.exec_driver_sql("UPDATE t SET at = ? WHERE pk = ?", (at, some))
                elif place % 3:
                    conn.exec_driver_sql("DELETE FROM t WHERE pk = ?", (some,))
                    gone.append(live.pop(some).split()[0].encode())
    db.checkpoint(truncate=True)
    before = (tmp_path / "bank.sqlite").read_bytes()
    assert [word for word in gone if word in before] != []  # else this test proves nothing
    db.purge()
    data = (tmp_path / "bank.sqlite").read_bytes()
    assert [word for word in gone if word in data] == []
    with db.scope() as conn:
        assert conn.exec_driver_sql("PRAGMA integrity_check").all() == [("ok",)]
        rows = conn.exec_driver_sql("SELECT pk, text FROM t").all()
        assert {pk: text for pk, text in rows} == live
    db.close()
    assert scrubbing._open == {}


def test_no_cached_page_brings_old_bytes_back(tmp_path: Path) -> None:
    """A second connection holds pages with copies in its cache, then writes to those pages."""
    with Storage.open(tmp_path / "bank") as one, Storage.open(tmp_path / "bank") as two:
        one.claim(MODEL, SPEC)
        for number in range(150):
            put(one, memory(f"canary{number:04d} " * 30))
        for bank in (one, two):
            assert len(texts(bank)) == 150
            for stored in bank.list_memories(ALICE):
                recall(bank, "t", stored.id)
        assert one.forget(ALICE, "canary01").memories == 50
        for bank in (two, one):
            for stored in bank.list_memories(ALICE):
                recall(bank, f"t{bank is one}", stored.id)
        two._db.checkpoint(truncate=True)
        data = (tmp_path / "bank" / "bank.sqlite").read_bytes()
        assert b"canary0099" in data and b"canary01" not in data
        assert one.verify() == []


def test_what_is_written_while_texts_are_searched_is_found_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Storage.open(tmp_path / "bank") as one, Storage.open(tmp_path / "bank") as two:
        one.claim(MODEL, SPEC)
        put(one, memory("rex at first"), memory("stays"))
        real, late = matching.memories_with, ["rex comes late"]

        def searched(*arguments: Any) -> list[int]:
            found = list(real(*arguments))
            if late:
                put(two, memory(late.pop()))
            return found

        monkeypatch.setattr(matching, "memories_with", searched)
        assert one.forget(ALICE, "rex").memories == 2
        assert texts(two) == ["stays"]


def test_a_border_is_looked_across_in_every_version_of_a_document(bank: Storage) -> None:
    def sections(*texts: str) -> list[NewMemory]:
        fields: dict[str, Any] = {"role": "document", "source": "letter.txt"}
        return [memory(text, ordinal=at, **fields) for at, text in enumerate(texts)]

    put(bank, *sections("It begins with a sec", "ret, and it ends."))
    put(bank, *sections("It begins other", "wise, and it ends."))
    assert bank.forget(ALICE, "a secret").memories == 2
    assert bank.forget(ALICE, "otherwise").memories == 2 and texts(bank) == []


def test_what_stayed_hidden_is_recalled_again_when_it_is_told_again(bank: Storage) -> None:
    fields: dict[str, Any] = {"role": "document", "source": "menu.txt"}
    (old,) = put(bank, memory("apple pie", **fields))
    bank.supersede(ALICE, old, memory("pear tart", **fields))
    bank.forget(ALICE, "pear")
    assert found(bank, "apple") == []
    assert put(bank, memory("apple pie", **fields)) == [old]
    assert found(bank, "apple") == ["apple pie"]
