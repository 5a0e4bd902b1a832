"""Sealed values and keys: what comes back, what is refused, what no file shows."""

from __future__ import annotations

import base64
import json
import logging
import secrets
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_making import SPEC, kv_of

from memlong_agent.errors import ConfigError, StoreCorruptError, StoreKeyError
from memlong_agent.storage.blobs import BlobStore, FileBlobs, MemoryBlobs
from memlong_agent.storage.keys import Key, key_from, new_data_key, unwrap, wrap
from memlong_agent.storage.seal import PLAIN, AesGcm, Cipher

RAW = bytes(range(32))
AT = ("chunks.text", "ab/0")


@pytest.fixture
def cipher() -> Cipher:
    return AesGcm(RAW)


@pytest.mark.parametrize(
    "text", ["", "my dog is called Rex", "東京 \U0001f415 \x00", "sealed:abcd"]
)
def test_what_is_sealed_opens_again_and_cannot_be_read(cipher: Cipher, text: str) -> None:
    sealed = cipher.seal_text(text, *AT)
    assert sealed is not None and sealed.startswith("sealed:") and sealed.isascii()
    assert not text or text not in sealed.removeprefix("sealed:")
    assert cipher.open_text(sealed, *AT) == text
    assert cipher.seal_text(text, *AT) != sealed  # a nonce of its own each time
    data = text.encode()
    assert cipher.open(cipher.seal(data, *AT), *AT) == data
    assert len(cipher.seal(data, *AT)) == len(data) + cipher.overhead


def test_json_opens_as_it_was(cipher: Cipher) -> None:
    value = {"mood": "glad", "n": [1, None, 2.5, True], "ü": {"": "\ud800"}}
    sealed = cipher.seal_json(value, *AT)
    assert isinstance(sealed, str) and "glad" not in sealed
    assert cipher.open_json(sealed, *AT) == value
    assert cipher.seal_json(None, *AT) is cipher.seal_text(None, *AT) is None
    assert cipher.open_json(None, *AT) is cipher.open_text(None, *AT) is None


@pytest.mark.parametrize("place", [("chunks.header", "ab/0"), ("chunks.text", "ab/1")])
def test_a_value_opens_in_its_own_place_only(cipher: Cipher, place: tuple[str, str]) -> None:
    sealed = cipher.seal_text("Rex", *AT)
    with pytest.raises(StoreCorruptError, match=r"of ab/.*moved there.*backup"):
        cipher.open_text(sealed, *place)
    with pytest.raises(StoreCorruptError):
        AesGcm(bytes(32)).open_text(sealed, *AT)


def test_every_changed_byte_is_noticed(cipher: Cipher) -> None:
    sealed = cipher.seal(b"Rex", *AT)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(StoreCorruptError):
            cipher.open(bytes(changed), *AT)
        with pytest.raises(StoreCorruptError):
            cipher.open(sealed[:place], *AT)


@pytest.mark.parametrize(
    "planted", ["Rex", "", "sealed:", "sealed:Rex", "sealed:é", "sealed:===", 7]
)
def test_plain_text_is_not_taken_for_sealed_text(cipher: Cipher, planted: Any) -> None:
    for opened in (cipher.open_text, cipher.open_json):
        with pytest.raises(StoreCorruptError):
            opened(planted, *AT)


def test_without_a_key_everything_stays_as_it_is() -> None:
    value = {"text": "sealed:Rex"}
    assert PLAIN.seal_json(value, *AT) is value and PLAIN.open_json(value, *AT) is value
    assert PLAIN.open_text(PLAIN.seal_text("sealed:Rex", *AT), *AT) == "sealed:Rex"
    assert PLAIN.open(memoryview(PLAIN.seal(b"Rex", *AT)), *AT) == b"Rex"


def stores(folder: Path) -> list[BlobStore]:
    (folder / "kv").mkdir()
    return [FileBlobs(folder), MemoryBlobs()]


def test_a_kv_file_is_sealed_for_its_id(tmp_path: Path, cipher: Cipher) -> None:
    chunks = [kv_of("a", 3), kv_of("b", 3)]
    for store in stores(tmp_path):
        store.cipher = cipher
        first, second = store.publish(SPEC, chunks)
        for ref, chunk in zip((first, second), store.read_many(SPEC, [first, second]), strict=True):
            expected = chunks[ref is second]
            assert torch.equal(chunk.keys, expected.keys)
            assert torch.equal(chunk.values, expected.values)
        if isinstance(store, FileBlobs):
            paths = [store.path_of(ref.blob_id) for ref in (first, second)]
            whole = paths[0].read_bytes()
            assert len(whole) == first.nbytes and b"BF16" not in whole
            raw = chunks[0].keys.view(torch.uint8).numpy().tobytes()
            assert raw[:16] not in whole
            assert stat.S_IMODE(paths[0].stat().st_mode) == 0o600
            paths[0].write_bytes(paths[1].read_bytes())
            moved = type(first)(first.blob_id, 3, second.nbytes, second.checksum)
            with pytest.raises(StoreCorruptError, match=r"that this bank sealed, found another"):
                store.read_many(SPEC, [moved])
        store.cipher = AesGcm(bytes(32))
        with pytest.raises(StoreCorruptError):
            store.read_many(SPEC, [second])


HEX = RAW.hex()
OTHER = b"\xff" * 31 + b"\xfb"  # in base64 it holds what the two alphabets write differently
BASE64 = base64.b64encode(OTHER).decode()
URL_SAFE = base64.urlsafe_b64encode(OTHER).decode().rstrip("=")


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (HEX, Key(RAW)),
        (f" {HEX.upper()}\n", Key(RAW)),
        (RAW, Key(RAW)),
        (HEX.encode(), Key(RAW)),
        (BASE64, Key(OTHER)),
        (URL_SAFE, Key(OTHER)),
        ("correct horse battery", Key(b"correct horse battery", passphrase=True)),
        (b"thirty-two bytes, but all text!!", Key(b"thirty-two bytes, but all text!!", True)),
    ],
)
def test_a_key_is_32_bytes_or_a_passphrase(given: str | bytes, key: Key, tmp_path: Path) -> None:
    assert key_from(given, {}) == key
    file = tmp_path / "key"
    file.write_bytes(given if isinstance(given, bytes) else given.encode())
    file.chmod(0o600)
    assert key_from(file, {}) == key
    assert key_from(None, {"MEMLONG_KEY_FILE": str(file)}) == key
    if isinstance(given, str):
        assert key_from(None, {"MEMLONG_KEY": given}) == key
    assert repr(key.secret) not in repr(key)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "0 characters"),
        ("short", "5 characters.*12 or more.*openssl rand -hex 32"),
        (b"\xff" * 31, "neither text nor 32 bytes"),
        (b"\x00" * 33, "neither text nor 32 bytes"),
        (Path("/nowhere/key"), "cannot be read: No such file.*Check its path"),
    ],
)
def test_what_is_no_key_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        key_from(given, {})


def test_no_key_and_two_keys() -> None:
    assert key_from(None, {}) is None
    assert key_from(None, {"MEMLONG_KEY": "", "MEMLONG_KEY_FILE": ""}) is None
    with pytest.raises(ConfigError, match="Both MEMLONG_KEY and MEMLONG_KEY_FILE are set"):
        key_from(None, {"MEMLONG_KEY": HEX, "MEMLONG_KEY_FILE": "key"})


def test_a_key_file_that_others_may_read_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "key"
    file.write_text(HEX)
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING, logger="memlong_agent.storage"):
        key_from(file, {})
    assert f"chmod 600 {file}" in caplog.text


@pytest.mark.parametrize("key", [Key(RAW), Key(b"correct horse battery", passphrase=True)])
def test_the_data_key_opens_with_the_key_and_with_no_other(key: Key) -> None:
    data_key = new_data_key()
    row = wrap(key, data_key, "bank")
    assert unwrap(key, row, "bank", "./memory") == data_key
    assert data_key.hex() not in row and base64.b64encode(data_key).decode() not in row
    for wrong in (Key(bytes(32)), Key(b"correct horse batterz", passphrase=True)):
        with pytest.raises(StoreKeyError, match=r"not the key of the bank at \./memory"):
            unwrap(wrong, row, "bank", "./memory")
    with pytest.raises(StoreKeyError):  # the row of another bank
        unwrap(key, row, "other", "./memory")
    with pytest.raises(StoreKeyError, match=r"is encrypted.*MEMLONG_KEY.*--key-file"):
        unwrap(None, row, "bank", "./memory")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"kdf": {"name": "scrypt", "salt": "00" * 16, "n": 1 << 40, "r": 8, "p": 1}},
        {"kdf": {"name": "scrypt", "salt": "00" * 16, "n": 1000, "r": 8, "p": 1}},
        {"kdf": {"name": "md5", "salt": "00" * 16, "n": 16, "r": 8, "p": 1}},
        {"kdf": {"name": "scrypt", "salt": "", "n": 16, "r": 8, "p": 1}},
        {"kdf": {"name": "scrypt"}},
        {"kdf": 7},
        {"wrapped": "?"},
        {"wrapped": None},
    ],
)
def test_a_damaged_row_is_named(change: dict[str, Any]) -> None:
    row = json.loads(wrap(Key(RAW), new_data_key(), "bank"))
    with pytest.raises(StoreCorruptError, match=r"the key of \./memory is damaged"):
        unwrap(Key(RAW), json.dumps({**row, **change}), "bank", "./memory")
    for text in ("", "[]", "7", secrets.token_hex(8)):
        with pytest.raises(StoreCorruptError):
            unwrap(Key(RAW), text, "bank", "./memory")


def test_the_library_is_an_extra_and_loads_with_the_first_key() -> None:
    code = (
        "import sys\n"
        "from memlong_agent.storage import Storage\n"
        "from memlong_agent.storage.seal import AesGcm\n"
        "Storage.open(':memory:').close()\n"
        "assert not any(name.startswith('cryptography') for name in sys.modules)\n"
        "sys.modules['cryptography.exceptions'] = None\n"
        "try:\n"
        "    AesGcm(bytes(32))\n"
        "except Exception as exc:\n"
        "    print(type(exc).__name__, exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ConfigError Encryption needs the package cryptography.")
    assert "memlong-agent[encrypt]" in done.stdout
