"""An encrypted bank through the front door: keys from everywhere, no plain byte in the folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from memlong_agent import ConfigError, MemLong, StoreKeyError

Open = Callable[..., MemLong]
KEY = bytes(range(32)).hex()
NEEDLES = ("Xanthippe", "Quarzkristall", "Geheimquelle", "Gutelaune", "Postfachwert")


def leaks(folder: Path) -> list[tuple[str, str]]:
    """Files in which a needle stands, as it was said or as the word index would write it."""
    return [
        (path.name, needle)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for data in [path.read_bytes()]
        for needle in NEEDLES
        if needle.encode() in data or needle.lower().encode() in data
    ]


def live(ml: MemLong) -> None:
    """Everything that writes: chat, documents, exchanges, items, changes, deletions."""
    session = ml.session("s", user_id="anna")
    session.chat("My neighbour Xanthippe keeps a Quarzkristall.", max_tokens=4)
    memories = ml.memories(user_id="anna")
    memories.add("Xanthippe wrote this. " * 60, source="Geheimquelle.txt")
    (first,) = memories.add("Quarzkristall on the shelf.", metadata={"mood": "Gutelaune"})
    memories.update(first.id, "Xanthippe moved the Quarzkristall.")
    ml.items().put(("a", "b"), "k", {"x": "Postfachwert"}, texts=["Postfachwert"],
                   remember="The Postfachwert is 7.", user_id="anna")  # fmt: skip


def test_nothing_that_was_said_is_in_the_folder(open_memlong: Open, tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    ml = open_memlong(key=KEY)
    live(ml)
    assert leaks(folder) == []
    assert {each.text for each in ml.memories(user_id="anna").search("Xanthippe")} != set()
    ml.memories(user_id="anna").clear(session_id="s")
    assert leaks(folder) == []
    ml.close()
    assert leaks(folder) == []
    again = open_memlong(key=KEY)
    assert any("Quarzkristall" in each.text for each in again.memories(user_id="anna").list())
    assert again.items().get(("a", "b"), "k") is not None
    found = again.doctor()
    assert found.problems == () and found.encrypted and (found.word_index_s or 0) > 0
    assert leaks(folder) == []


def test_the_search_finds_what_a_plain_bank_shows(open_memlong: Open, tmp_path: Path) -> None:
    live(open_memlong())
    assert {needle for _, needle in leaks(tmp_path / "bank")} == set(NEEDLES)


def test_replies_and_recalls_are_those_of_a_plain_bank(open_memlong: Open, tmp_path: Path) -> None:
    replies = []
    for options in ({"bank": tmp_path / "a"}, {"bank": tmp_path / "b", "key": KEY}):
        ml = open_memlong(**options)
        live(ml)
        reply = ml.session("t", user_id="anna").chat("What of the Quarzkristall?", max_tokens=8)
        replies.append([(each.text, each.score, each.attention_mass) for each in reply.recalled])
        replies.append([(reply.text, reply.attention_mass)])
        assert reply.recalled
    assert replies[:2] == replies[2:]


def test_keys_come_from_the_call_the_environment_or_a_file(
    open_memlong: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    file.chmod(0o600)
    monkeypatch.setenv("MEMLONG_KEY", KEY)
    with open_memlong() as ml:
        ml.memories(user_id="anna").add("Xanthippe")
    monkeypatch.delenv("MEMLONG_KEY")
    with pytest.raises(StoreKeyError, match="MEMLONG_KEY"):
        open_memlong()
    with pytest.raises(StoreKeyError, match="not the key"):
        open_memlong(key="ab" * 32)
    monkeypatch.setenv("MEMLONG_KEY_FILE", str(file))
    for options in ({}, {"key": KEY}, {"key": file}, {"key": bytes.fromhex(KEY)}):
        with open_memlong(**options) as ml:
            assert [each.text for each in ml.memories(user_id="anna").list()] == ["Xanthippe"]


def test_a_wrong_key_is_known_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="12 or more"):
        MemLong(tmp_path / "no model", tmp_path / "bank", key="short")
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize("key", [None, KEY])
def test_only_their_owner_may_read_the_files(
    open_memlong: Open, tmp_path: Path, key: str | None
) -> None:
    before = os.umask(0)  # what a careless environment leaves
    try:
        ml = open_memlong(key=key)
        live(ml)
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "bank").rglob("*")}
        ml.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "bank").stat().st_mode) == 0o700
    assert {path.name for path in modes} >= {"bank.sqlite", "bank.sqlite-wal", "bank.lock", "kv"}
    wrong = {
        path.name: oct(mode)
        for path, mode in modes.items()
        if mode != (0o700 if path.is_dir() else 0o600)
    }
    assert wrong == {}


def test_an_encrypted_bank_forgets_and_travels(open_memlong: Open, tmp_path: Path) -> None:
    """Searching by text, changes and archives work on what is sealed; the archive is plain."""
    ml = open_memlong(key=KEY)
    live(ml)
    memories = ml.memories(user_id="anna")
    gone = memories.forget(text="Quarzkristall on the shelf")
    assert gone.memories == 0  # it was changed before
    assert memories.forget(text="moved the Quarzkristall").memories == 1
    (new,) = memories.add("The Quarzkristall is sold.")
    archive = tmp_path / "bank.zip"
    ml.export(archive)
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    other = open_memlong(bank=tmp_path / "other", key="cd" * 32)
    other.restore(archive)
    theirs = other.memories(user_id="anna")
    assert theirs.get(new.id).text == new.text
    assert [each.memory_id for each in theirs.search("Quarzkristall sold")] == [
        each.memory_id for each in memories.search("Quarzkristall sold")
    ]
    assert leaks(tmp_path / "other") == leaks(tmp_path / "bank") == []
    assert other.doctor().problems == ()
