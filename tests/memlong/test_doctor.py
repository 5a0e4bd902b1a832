"""Real banks damaged in every way that can be told, and what the doctor says and mends.

Bytes and rows are damaged from outside, with the bank closed; then one MemLong finds the damage,
repairs it, and everything is as it was before: texts, ids, recalls, K/V to the last bit.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_kinds import KINDS, Kind, on

from memlong_agent import MemLong

Open = Callable[..., MemLong]
Damage = Callable[[Kind, int], None]
"""Harms what a chunk has."""
TEXTS = ("My dog is called Rex.", "The boat's name is Nora.", "Tea at five, never coffee.")


def rows(statement: str, on_server: str | None = None) -> Damage:
    """`{}` is the chunk; `on_server` the words of PostgreSQL where they are others."""

    def damage(kind: Kind, chunk: int) -> None:
        said = statement if kind.database is None else on_server or statement
        kind.run(said.format(chunk))

    return damage


def lose_a_file(kind: Kind, chunk: int) -> None:
    kind.file_of(chunk).unlink()


def flip_a_bit(kind: Kind, chunk: int) -> None:
    data = bytearray(kind.file_of(chunk).read_bytes())
    data[-1] ^= 1
    kind.file_of(chunk).write_bytes(data)


def cut_a_file(kind: Kind, chunk: int) -> None:
    os.truncate(kind.file_of(chunk), 4100)


def swap_two_files(kind: Kind, chunk: int) -> None:
    one, two = kind.file_of(chunk), kind.file_of(chunk + 1)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def open_to_all(kind: Kind, chunk: int) -> None:
    (kind.folder / "kv").chmod(0o755)
    kind.file_of(chunk).chmod(0o644)


# name, damage, words of a problem
DAMAGES: list[tuple[str, Damage, str]] = [
    ("a lost file", lose_a_file, "no file"),
    ("a flipped bit", flip_a_bit, "checksum"),
    ("a short file", cut_a_file, "4100 bytes"),
    ("two files swapped", swap_two_files, "damaged"),
    ("a wrong checksum", rows("UPDATE blobs SET checksum = 'f' WHERE chunk_pk = {}"), "checksum"),
    ("no name of a file", rows("DELETE FROM blobs WHERE chunk_pk = {}"), "has no K/V file"),
    ("no vector", rows("DELETE FROM vectors WHERE chunk_pk = {}"), "has no vector"),
    (
        "half a vector",
        rows(
            "UPDATE vectors SET vector = x'0000' WHERE chunk_pk = {}",
            "UPDATE vectors SET vector = '\\x0000' WHERE chunk_pk = {}",
        ),
        "vector",
    ),
    ("a wrong count", rows("UPDATE owners SET chunks = 7, tokens = 1"), "7 chunks and 1 tokens"),
    ("open modes", open_to_all, "open to others"),
]
# What an encrypted bank has in memory only.
IN_WORDS: list[tuple[str, Damage, str]] = [
    (
        "a word missing",
        rows("DELETE FROM lexical WHERE rowid = {}", "DELETE FROM postings WHERE chunk_pk = {}"),
        "not in the word index",
    ),
    (
        "other words",
        rows(
            "UPDATE lexical SET terms = 'o1xwrong' WHERE rowid = {}",
            "UPDATE postings SET term = 'o1xwrong' WHERE term <> '' AND chunk_pk = {0} AND term = "
            "(SELECT max(term) FROM postings WHERE chunk_pk = {0})",
        ),
        "other words",
    ),
]
# What a foreign key of PostgreSQL forbids.
STRAY_WORDS: tuple[str, Damage, str] = (
    "words of nobody",
    rows("INSERT INTO lexical (rowid, terms) VALUES (99, 'x')"),
    "chunk 99",
)


def seen(ml: MemLong) -> list[Any]:
    """Texts, ids, and what a question recalls, with K/V."""
    memories = ml.memories(user_id="alice")
    owner = memories._owner
    hits = ml.engine.bank.recall(owner, "What is my dog called?", top_k=3)
    return [
        [(each.id, each.text) for each in memories.list()],
        [(hit.chunk.text, hit.score) for hit in hits],
        [hit.kv.keys for hit in hits],
    ]


@pytest.mark.parametrize(
    ("damage", "words"),
    [each[1:] for each in (*DAMAGES, *IN_WORDS, STRAY_WORDS)],
    ids=[each[0] for each in (*DAMAGES, *IN_WORDS, STRAY_WORDS)],
)
def test_damage_is_named_and_repaired(
    open_memlong: Open, kind: Kind, damage: Damage, words: str
) -> None:
    harmed_and_mended(open_memlong, kind, TEXTS, [(1, damage, words)])


@on(*KINDS)
def test_all_damages_at_once_are_named_and_repaired(open_memlong: Open, kind: Kind) -> None:
    """Each harms another memory of one bank."""
    chosen = DAMAGES if kind.key else DAMAGES + IN_WORDS
    harms = [(2 * place + 1, damage, words) for place, (_, damage, words) in enumerate(chosen)]
    texts = [f"The boat number {n} is called {TEXTS[n % 3]}" for n in range(2 * len(chosen))]
    harmed_and_mended(open_memlong, kind, texts, harms)


def harmed_and_mended(
    open_memlong: Open, kind: Kind, texts: Sequence[str], harms: list[tuple[int, Damage, str]]
) -> None:
    with open_memlong() as ml:
        for text in texts:
            ml.memories(user_id="alice").add(text)
        before = seen(ml)
    for chunk, damage, _ in harms:
        damage(kind, chunk)
    with open_memlong() as ml:
        found = ml.doctor()
        for _, _, words in harms:
            assert any(words in problem for problem in found.problems), (words, found.problems)
        assert found.repaired == () and not found.healthy
        mended = ml.doctor(repair=True)
        assert mended.problems == () and mended.healthy
        assert mended.repaired
        after = seen(ml)
        assert after[:2] == before[:2]
        for old, new in zip(before[2], after[2], strict=True):
            assert torch.allclose(old, new, atol=1e-5)
        assert ml.doctor(repair=True).repaired == ()


@on(*KINDS)
def test_a_bank_in_use_is_healthy(open_memlong: Open, kind: Kind) -> None:
    """Superseded, changed, forgotten and expired memories, items with and without vectors."""
    ml = open_memlong()
    memories = ml.memories(user_id="alice", session_id="s")
    first, second = (memories.add(text)[0] for text in TEXTS[:2])
    memories.supersede(first.id, "My dog is called Bello.")
    memories.update(second.id, "The boat's name is Ida.")
    memories.forget(text="Ida")
    ml.session("s", user_id="alice").chat("What is my dog called?", max_tokens=4)
    for key, texts in (("one", ["tea"]), ("two", [])):
        ml.items().put(("a",), key, {"drink": "tea"}, texts=texts)
    memories.add(TEXTS[2], expires_at=ml._clock())
    found = ml.doctor()
    assert found.problems == () and found.healthy and found.expired == 1
    assert (found.encrypted, found.word_index_s is None) == (kind.key is not None, kind.key is None)
    assert found.database.startswith("SQLite 3." if kind.database is None else "PostgreSQL ")
    assert ml.doctor(repair=True).repaired == ()
    assert [each.text for each in memories.search("dog called", top_k=1)] == [
        "My dog is called Bello."
    ]


def test_a_stray_file_is_named_and_swept(open_memlong: Open, tmp_path: Path) -> None:
    ml = open_memlong()
    ml.memories(user_id="alice").add(TEXTS[0])
    stray = tmp_path / "bank" / "kv" / "aa" / f"{'aa' * 16}.safetensors"
    stray.parent.mkdir(mode=0o700, exist_ok=True)
    stray.write_bytes(b"left behind")
    stray.chmod(0o600)
    assert ml.doctor().healthy  # it may be of a write under way
    os.utime(stray, (time.time() - 7200,) * 2)
    assert any("belongs to no chunk" in each for each in ml.doctor().problems)
    assert ml.doctor(repair=True).healthy and not stray.exists()


def test_what_cannot_be_derived_stays_named_and_nothing_else_is_lost(
    open_memlong: Open, kind: Kind
) -> None:
    with open_memlong() as ml:
        ml.memories(user_id="alice").add(TEXTS[0])
    kind.run("UPDATE chunks SET owner_id = 77")
    with open_memlong() as ml:
        found = ml.doctor(repair=True)
        assert any("refers to a row of owners that is gone" in each for each in found.problems)
        assert [each.text for each in ml.memories(user_id="alice").list()] == [TEXTS[0]]


def test_the_condition_of_a_bank_is_told(open_memlong: Open) -> None:
    ml = open_memlong()
    memories = ml.memories(user_id="alice")
    memories.add(TEXTS[0], expires_at=ml._clock())
    found = ml.doctor()
    assert found.healthy and found.expired == 1 and found.pending == 0 and not found.encrypted
    assert found.database.startswith("SQLite 3.") and found.schema_step.startswith("m00")
    assert json.loads(found.model_dump_json())["logit_difference"] > 0
