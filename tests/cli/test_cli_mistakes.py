"""A user's mistake is one line on standard error and exit code 2, never a traceback."""

from __future__ import annotations

import errno
import io
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from cli_results import Run, line_of, ok

from memlong_agent.cli.files import TextReader
from memlong_agent.errors import ConfigError

UNKNOWN = "0" * 32


@pytest.fixture
def strange(tmp_path: Path) -> None:
    """Things that no command can use, in the working folder."""
    (tmp_path / "file").write_text("not a bank")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text("\ufeff \n")
    (tmp_path / "latin.txt").write_bytes("Caf\u00e9".encode("latin-1"))
    (tmp_path / "nul.txt").write_bytes(b"ab\0c")
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')


MISTAKES = [
    (["list", "--model", "nobody/no-such-model"], "nobody/no-such-model"),
    (["list", "--model", "./nowhere"], "./nowhere"),
    (["list", "--model", "gpt2"], "'gpt2'"),
    (["list", "--bank", "file"], "file"),
    (["list", "--embedder", "./nowhere"], "./nowhere"),
    (["forget", UNKNOWN], UNKNOWN),
    (["forget"], "--all"),
    (["forget", UNKNOWN, "--all"], "--all"),
    (["add", "empty.txt"], "empty"),
    (["add", "blank.txt"], "empty"),
    (["add", "latin.txt"], "latin.txt is not valid UTF-8 at byte 3"),
    (["add", "nul.txt"], "byte 2"),
    (["add", "missing.txt"], "missing.txt: No such file"),
    (["add", "gpt2"], "gpt2: Is a directory"),
    (["add", "file", "--sorce", "x"], "--source"),
    (["search"], "QUERY"),
    (["search", "key", "--top-k", "0"], "top_k"),
    (["list", "--limit", "none"], "--limit"),
    (["chat", "--temperature", "-1"], "temperature"),
    (["nonsense"], "nonsense"),
    (["train"], "--out"),
    (["train", "--out", "x", "--base-steps", "-1"], "base_steps"),
    (["train", "--out", "file"], "file: File exists"),
]


@pytest.mark.usefixtures("strange")
@pytest.mark.parametrize(("args", "named"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_mistake_is_one_line(memlong: Run, args: list[str], named: str) -> None:
    assert named in line_of(memlong(*args))


def test_what_a_pipe_says_wrongly_ends_the_chat(memlong: Run) -> None:
    assert "standard input is not valid UTF-8 at byte 6" in line_of(
        memlong("chat", stdin=b"     \n\xff\n")
    )
    assert "/recals" in line_of(memlong("chat", stdin="/recals\n"))
    assert UNKNOWN in line_of(memlong("chat", stdin=f"/forget {UNKNOWN}\n"))
    assert "/forget ID" in line_of(memlong("chat", stdin="/forget\n"))


def test_a_bank_of_another_embedder_is_refused(memlong: Run, noted: str) -> None:
    line = line_of(memlong("list", "--embedder", "lexical"))
    assert "hash" in line
    assert "lexical" in line
    assert noted in ok(memlong("list"))


def test_a_busy_bank_is_not_waited_for_longer_than_asked(
    memlong: Run, noted: str, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "bank" / "bank.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        line = line_of(memlong("add", "-", "--timeout", "0.1", stdin="Another note."))
        assert "was busy for 0.1 s" in line and "--timeout" in line
        other.execute("ROLLBACK")
    assert noted in ok(memlong("list"))
    ok(memlong("add", "-", stdin="Another note."))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_loses_nothing(
    memlong: Run, noted: str, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", full)  # what a K/V file is written with
        line = line_of(memlong("add", "-", stdin="Another note."))
    assert os.strerror(code) in line and "Free space" in line
    assert noted in ok(memlong("list")) and "Another" not in ok(memlong("list"))
    ok(memlong("doctor"))


def test_an_offset_counts_from_the_beginning_of_the_file() -> None:
    block = 1 << 16
    whole = "x" * (block - 1) + "\u00e9" + "x" * block  # a character across the block's end
    assert "".join(TextReader(io.BytesIO(whole.encode()), "f")) == whole
    for before in (block - 1, block, 2 * block + 5):
        with pytest.raises(ConfigError, match=f"at byte {before}\\."):
            list(TextReader(io.BytesIO(b"x" * before + b"\xff\xff" + b"x"), "f"))
    with pytest.raises(ConfigError, match=f"at byte {block - 1}\\."):
        list(TextReader(io.BytesIO(b"x" * (block - 1) + b"\xc3"), "f"))  # cut off at the end
