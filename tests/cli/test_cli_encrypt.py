"""Keys on the command line: a bank that is encrypted from its first command, and one that becomes
so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_results import KEY, Run, line_of, objects, ok

SECRET = "7f" * 32


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "memory.key"
    path.write_text(SECRET)
    path.chmod(0o600)
    return str(path)


def shows(folder: Path) -> bool:
    """Whether a byte search of the folder finds what was remembered."""
    found = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return any(b"teapot" in data for data in found)


def test_a_key_with_the_first_command_makes_an_encrypted_bank(
    memlong: Run, note: str, key_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok(memlong("add", note, "--key-file", key_file))
    assert not shows(tmp_path / "bank")
    assert "is encrypted. Give its key" in line_of(memlong("list"))
    monkeypatch.setenv("MEMLONG_KEY", SECRET)
    assert [each["text"] for each in objects(memlong("list", "--json"))] == [f"{KEY}\n"]
    assert "teapot" in ok(memlong("search", "copper teapot"))
    assert json.loads(ok(memlong("doctor", "--json")))["healthy"]
    monkeypatch.setenv("MEMLONG_KEY", "80" * 32)
    assert "is not the key of the bank" in line_of(memlong("list"))
    monkeypatch.setenv("MEMLONG_KEY_FILE", key_file)
    assert "Both MEMLONG_KEY and MEMLONG_KEY_FILE are set" in line_of(memlong("list"))


def test_a_plain_bank_is_encrypted_and_gets_another_key(
    memlong: Run, note: str, key_file: str, tmp_path: Path
) -> None:
    ok(memlong("add", note))
    assert shows(tmp_path / "bank")
    refused = line_of(memlong("list", "--key-file", key_file))
    assert f"memlong encrypt --bank {tmp_path / 'bank'}" in refused
    assert "openssl rand -hex 32" in line_of(memlong("encrypt"))
    assert "is encrypted." in ok(memlong("encrypt", "--key-file", key_file))
    assert not shows(tmp_path / "bank")
    assert "already" in ok(memlong("encrypt", "--key-file", key_file))
    new = tmp_path / "new.key"
    new.write_text("a long enough passphrase")
    new.chmod(0o600)
    changed = memlong("encrypt", "--key-file", key_file, "--new-key-file", str(new), "--json")
    assert json.loads(ok(changed))["changed"]
    assert "is not the key" in line_of(memlong("list", "--key-file", key_file))
    assert "teapot" in ok(memlong("list", "--key-file", str(new)))


def test_mistakes_with_keys(memlong: Run, key_file: str, tmp_path: Path) -> None:
    missing = line_of(memlong("list", "--key-file", "nowhere.key"))
    assert "nowhere.key cannot be read: No such file or directory" in missing
    assert "There is no bank at" in line_of(memlong("encrypt", "--key-file", key_file))
    (tmp_path / "short").write_text("short")
    (tmp_path / "short").chmod(0o600)
    assert "12 or more" in line_of(memlong("list", "--key-file", str(tmp_path / "short")))
    assert not (tmp_path / "bank").exists()
