"""The word index: what is a word, who sees it, what is rare, and that forgotten words are gone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from bank_making import ALICE, BOB, MODEL, SPEC, kv_of, memory

from memlong_agent.errors import StoreError
from memlong_agent.storage import NewChunk, NewMemory, Owner, Storage
from memlong_agent.storage.base import utc_now
from memlong_agent.storage.lexical import Fts5Lexical, terms
from memlong_agent.storage.migrations import prepare
from memlong_agent.storage.sqlite import SqliteDatabase, require_module


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("My dog's called REX!", ["my", "dog", "called", "rex"]),
        ("Café, ÉCOLE & Straße", ["cafe", "ecole", "strasse"]),
        ("a 7 I x9 snake_case", ["7", "x9", "snake_case"]),
        ("ﬁne Ⅷ", ["fine", "viii"]),
        ("", []),
        ('"; DROP TABLE x --" OR NEAR(*', ["drop", "table", "or", "near"]),
        ("東京都 と abc", ["東京", "京都", "と", "abc"]),
        ("Ünï中", ["中", "uni"]),
        ("пёс", ["пес"]),
        ("z" * 100, ["z" * 64]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert terms(text) == words


@pytest.mark.parametrize("word", ["Straße", "пёс", "東京", "مرحبا", "snake_case", "7", "z" * 100])
def test_every_word_that_is_indexed_is_found(bank: Storage, word: str) -> None:
    (stored,) = bank.add(ALICE, [memory(f"the word is {word} indeed")])
    bank.add(ALICE, [memory("something else")] * 5)
    assert [hit.pk for hit in bank.search(ALICE, f"{word.upper()}?")] == list(stored.chunk_pks)


def test_a_question_of_more_words_than_one_statement_takes(bank: Storage) -> None:
    (stored,) = bank.add(ALICE, [memory("the parrot is called velora")])
    question = " ".join(f"word{i}" for i in range(1200)) + " velora"
    assert [hit.pk for hit in bank.search(ALICE, question)] == list(stored.chunk_pks)


def test_rarer_words_weigh_more_and_ties_go_by_key(bank: Storage) -> None:
    texts = ["velora", "velora", "velora amber", "amber", "quartz", *["filler"] * 15]
    stored = bank.add(ALICE, [memory(text) for text in texts])
    keys = [each.chunk_pks[0] for each in stored]
    hits = bank.search(ALICE, "velora amber velora")
    assert [hit.pk for hit in hits] == [keys[2], keys[3], keys[0], keys[1]]
    velora, amber = math.log1p(20 / 3), math.log1p(20 / 2)
    assert [hit.score for hit in hits] == pytest.approx([velora + amber, amber, velora, velora])
    assert [hit.rare for hit in hits] == [True, True, False, False]  # two chunks, not three
    assert [hit.pk for hit in bank.search(ALICE, "velora amber", depth=1)] == [keys[2]]
    assert bank.search(ALICE, "filler unheard") == []  # in 15 of 20 chunks; in none


def test_common_words_are_dropped_above_five_percent(bank: Storage) -> None:
    bank.add(ALICE, [memory(f"common fact number{i}") for i in range(3)])
    assert len(bank.search(ALICE, "common")) == 3  # up to three chunks, any word counts
    bank.add(ALICE, [memory(f"common fact number{i}") for i in range(3, 60)])
    assert bank.search(ALICE, "common") == []
    (hit,) = bank.search(ALICE, "common fact number7")
    assert hit.score == pytest.approx(math.log1p(60))


def test_only_the_six_rarest_words_are_looked_up(bank: Storage) -> None:
    rare = [f"rare{i}" for i in range(6)]
    bank.add(ALICE, [memory(word) for word in rare])
    (twice, _) = bank.add(ALICE, [memory("seventh"), memory("seventh")])
    found = {hit.pk for hit in bank.search(ALICE, " ".join([*rare, "seventh"]))}
    assert len(found) == 6 and twice.chunk_pks[0] not in found


def test_one_owners_writes_change_nothing_for_another(bank: Storage) -> None:
    bank.add(ALICE, [memory("velora stone"), memory("velora"), memory("stone cold")])
    before = bank.search(ALICE, "velora stone")
    assert before
    crowd = [Owner("default", "user", f"u{i}") for i in range(12)]  # pks 2..13: o1x.. and o12x..
    for owner in crowd:
        bank.add(owner, [memory(f"velora stone {i}") for i in range(9)])
    assert bank.search(ALICE, "velora stone") == before
    assert bank.search(BOB, "velora") == []
    for owner in crowd:
        bank.clear(owner)
    assert bank.search(ALICE, "velora stone") == before


def test_removed_chunks_are_not_found(bank: Storage) -> None:
    (stored, other) = bank.add(ALICE, [memory("velora", "amber"), memory("velora")])
    bank.delete_chunks(ALICE, stored.chunk_pks[:1])
    assert [hit.pk for hit in bank.search(ALICE, "velora")] == list(other.chunk_pks)
    bank.delete(ALICE, [stored.id])
    bank.purge()
    assert bank.search(ALICE, "amber") == []
    assert [hit.pk for hit in bank.search(ALICE, "velora")] == list(other.chunk_pks)


class Table:
    """The word index alone, over a database in memory."""

    def __init__(self) -> None:
        self.db = SqliteDatabase(None, 1.0)
        prepare(self.db, utc_now())
        self.words = Fts5Lexical()

    def add(self, texts: list[str]) -> None:
        with self.db.scope(write=True) as conn:
            self.words.add(conn, 1, list(enumerate(texts, 1)))

    def search(self, chunks: int, text: str) -> list[int]:
        with self.db.scope() as conn:
            return self.words.search(conn, 1, chunks, text).pks.tolist()


def test_a_question_of_frequent_words_reads_a_bounded_number_of_rows() -> None:
    table = Table()
    # Six words, each in 4,000 of (said to be) 100,000 chunks: below 5 %, together above 10,000.
    table.add([f"w{i % 6}" for i in range(24_000)])
    assert len(table.search(100_000, "w0 w1 w2 w3 w4 w5")) == 8_000
    assert len(table.search(1_000_000, "w5")) == 4_000
    table.db.close()


def test_a_session_is_searched_below_the_hits_of_others(bank: Storage) -> None:
    ballast = [NewChunk("", "ballast", (i,), kv_of("", 1)) for i in range(260)]
    theirs = [NewChunk("", "velora amber", (i,), kv_of("", 1)) for i in range(12)]
    bank.add(ALICE, [NewMemory("user", "x", theirs + ballast, session="s")])
    mine = NewMemory("user", "y", [NewChunk("", "velora", (1,), kv_of("", 1))], session="t")
    (stored,) = bank.add(ALICE, [mine])
    for depth in (4, 50):  # the hits of others fill several looks, or one
        hits = bank.search(ALICE, "velora amber", session="t", depth=depth)
        assert [hit.pk for hit in hits] == list(stored.chunk_pks)
    assert len(bank.search(ALICE, "velora amber")) == 13
    assert len(bank.search(ALICE, "velora amber", depth=7)) == 7


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_purge_leaves_no_byte_of_what_was_forgotten(folder_bank: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    secret = memory(
        "velorasecret lives here",
        source="sourcesecret",
        session="sessionsecret",
        metadata={"k": "metasecret"},
        messages=[{"content": "messagesecret"}],
    )
    (stored,) = folder_bank.add(ALICE, [secret])
    folder_bank.add(ALICE, [memory("harmless"), memory("velora other")])
    words = [b"velorasecret", b"sourcesecret", b"sessionsecret", b"metasecret", b"messagesecret"]
    assert all(word in bytes_of(folder) for word in words)
    folder_bank.delete(ALICE, [stored.id])
    folder_bank.clear(ALICE, "sessionsecret")
    left = bytes_of(folder)
    assert [word for word in words if word in left] == []
    assert b"harmless" in left
    assert not folder_bank.unpurged()
    assert len(folder_bank.search(ALICE, "harmless")) == 1 and folder_bank.verify() == []


def test_verify_sees_words_without_chunks_and_chunks_without_words(tmp_path: Path) -> None:
    with Storage.open(tmp_path / "bank") as bank:
        bank.claim(MODEL, SPEC)
        one, _ = bank.add(ALICE, [memory("a"), memory("b")])
        pk = one.chunk_pks[0]
        with bank._db.scope(write=True) as conn:
            conn.exec_driver_sql("UPDATE lexical SET rowid = 77 WHERE rowid = ?", (pk,))
            conn.exec_driver_sql("DELETE FROM vectors WHERE chunk_pk = ?", (pk,))
            conn.exec_driver_sql("UPDATE owners SET tokens = 1")
        problems = bank.verify()
    assert [problem.split(",")[0] for problem in problems] == [
        f"chunk {pk} has no vector",
        f"chunk {pk} is not in the word index",
        "the word index holds chunk 77",
        "owner 'alice' is booked with 2 chunks and 1 tokens",
    ]


def test_an_sqlite_without_full_text_search_is_refused() -> None:
    db = SqliteDatabase(None, 1.0)
    with db.scope() as conn:
        require_module(conn, "fts5")
        with pytest.raises(StoreError, match=r"without fts9.*Use a Python"):
            require_module(conn, "fts9")
    db.close()
