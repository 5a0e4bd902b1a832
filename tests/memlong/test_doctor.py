"""Real banks damaged in every way that can be told, and what the doctor says and mends.

Bytes and rows are damaged from outside, with the bank closed; then one MemLong finds the damage,
repairs it, and everything is as it was before: texts, ids, recalls, K/V to the last bit.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from memlong_agent import MemLong

Open = Callable[..., MemLong]
Damage = Callable[[Path], None]
TEXTS = ("My dog is called Rex.", "The boat's name is Nora.", "Tea at five, never coffee.")


def rows(statement: str) -> Damage:
    def damage(bank: Path) -> None:
        connection = sqlite3.connect(bank / "bank.sqlite")
        with connection:
            connection.execute(statement)
        connection.close()

    return damage


def a_file(bank: Path) -> Path:
    return min((bank / "kv").rglob("*.safetensors"))


def lose_a_file(bank: Path) -> None:
    a_file(bank).unlink()


def flip_a_bit(bank: Path) -> None:
    data = bytearray(a_file(bank).read_bytes())
    data[-1] ^= 1
    a_file(bank).write_bytes(data)


def cut_a_file(bank: Path) -> None:
    os.truncate(a_file(bank), 4100)


def swap_two_files(bank: Path) -> None:
    one, two = sorted((bank / "kv").rglob("*.safetensors"))[:2]
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def open_to_all(bank: Path) -> None:
    (bank / "bank.sqlite").chmod(0o644)
    (bank / "kv").chmod(0o755)


# name, damage, words of a problem
DAMAGES: list[tuple[str, Damage, str]] = [
    ("a lost file", lose_a_file, "no file"),
    ("a flipped bit", flip_a_bit, "checksum"),
    ("a short file", cut_a_file, "4100 bytes"),
    ("two files swapped", swap_two_files, "damaged"),
    ("a wrong checksum", rows("UPDATE blobs SET checksum = 'f' WHERE chunk_pk = 1"), "checksum"),
    ("no name of a file", rows("DELETE FROM blobs WHERE chunk_pk = 2"), "has no K/V file"),
    ("no vector", rows("DELETE FROM vectors WHERE chunk_pk = 1"), "has no vector"),
    ("half a vector", rows("UPDATE vectors SET vector = x'0000' WHERE chunk_pk = 1"), "vector"),
    ("a word missing", rows("DELETE FROM lexical WHERE rowid = 1"), "not in the word index"),
    ("words of nobody", rows("INSERT INTO lexical (rowid, terms) VALUES (99, 'x')"), "chunk 99"),
    ("other words", rows("UPDATE lexical SET terms = 'o1xwrong' WHERE rowid = 1"), "other words"),
    ("a wrong count", rows("UPDATE owners SET chunks = 7, tokens = 1"), "7 chunks and 1 tokens"),
    ("open modes", open_to_all, "open to others"),
]


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
    ("damage", "words"), [each[1:] for each in DAMAGES], ids=[each[0] for each in DAMAGES]
)
def test_damage_is_named_and_repaired(
    open_memlong: Open, tmp_path: Path, damage: Damage, words: str
) -> None:
    with open_memlong() as ml:
        for text in TEXTS:
            ml.memories(user_id="alice").add(text)
        before = seen(ml)
    damage(tmp_path / "bank")
    with open_memlong() as ml:
        found = ml.doctor()
        assert any(words in problem for problem in found.problems), found.problems
        assert found.repaired == () and not found.healthy
        mended = ml.doctor(repair=True)
        assert mended.problems == () and mended.healthy
        assert mended.repaired
        after = seen(ml)
        assert after[:2] == before[:2]
        for old, new in zip(before[2], after[2], strict=True):
            assert torch.allclose(old, new, atol=1e-5)
        assert ml.doctor(repair=True).repaired == ()


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
    open_memlong: Open, tmp_path: Path
) -> None:
    with open_memlong() as ml:
        ml.memories(user_id="alice").add(TEXTS[0])
    rows("UPDATE chunks SET owner_id = 77")(tmp_path / "bank")
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
