"""Keys of encrypted banks: what a user gives, and the data key that it wraps.

In: 32 bytes (as bytes, hexadecimal or base64), a passphrase, or a file with one of these. Out: the
cipher of a bank, or StoreKeyError. A data key is drawn with the bank and kept in it, wrapped by the
user's key: changing that rewrites one row. Knows no table: the row is text in, text out.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memlong_agent.errors import ConfigError, StoreCorruptError, StoreKeyError
from memlong_agent.storage.seal import AesGcm

_log = logging.getLogger("memlong_agent.storage")
KEY, KEY_FILE = "MEMLONG_KEY", "MEMLONG_KEY_FILE"
_BYTES = 32
_HEX = re.compile(r"[0-9a-fA-F]{64}")
_BASE64 = re.compile(r"[0-9A-Za-z+/_-]{43}=?")
_USUAL = str.maketrans("-_", "+/")  # of base64 for addresses
_SHORTEST = 12  # characters of a passphrase
# 128 MiB and about half a second for each guess: OWASP's first choice for scrypt.
_SCRYPT = {"n": 1 << 17, "r": 8, "p": 1}
_MOST = {"n": 1 << 20, "r": 16, "p": 4}  # a bank from elsewhere must not take all memory
_WRAPPED = "meta.seal"


@dataclass(frozen=True, slots=True)
class Key:
    """A user's key: 32 bytes, or a passphrase as UTF-8."""

    secret: bytes = field(repr=False)
    passphrase: bool = False


def key_from(given: str | bytes | Path | None, env: Mapping[str, str] = os.environ) -> Key | None:
    """What a user gave, or what MEMLONG_KEY or the file in MEMLONG_KEY_FILE says; None: no key.

    64 hexadecimal digits, or 32 bytes in base64, are the key; other text is a passphrase. A `Path`
    is a file that holds one of these, or 32 bytes.

    Raises:
        ConfigError: neither; both variables are set; the file cannot be read.
    """
    if given is None:
        text, file = env.get(KEY), env.get(KEY_FILE)
        if text and file:
            raise ConfigError(f"Both {KEY} and {KEY_FILE} are set. Unset one of them.")
        if not text and not file:
            return None
        given = text or Path(str(file))
    if isinstance(given, Path):
        return _parsed(_file(given.expanduser()), f"The key in {given}")
    return _parsed(given.encode() if isinstance(given, str) else given, "The key")


def needed_key(given: str | bytes | Path | None) -> Key:
    """As :func:`key_from`; ConfigError too if there is no key."""
    key = key_from(given)
    if key is None:
        raise ConfigError(
            f"There is no key. Make one (openssl rand -hex {_BYTES} > key; chmod 600 key) and pass "
            f"--key-file PATH, or set {KEY} or {KEY_FILE} (in Python key=...)."
        )
    return key


def wrap(key: Key, data_key: bytes, bank_id: str) -> str:
    """The row of a bank: its data key, readable with the user's key only."""
    kdf = {"name": "scrypt", "salt": secrets.token_hex(16), **_SCRYPT} if key.passphrase else None
    sealed = AesGcm(_wrapping_key(key, kdf)).seal(data_key, _WRAPPED, bank_id)
    row = {"version": 1, "kdf": kdf, "wrapped": base64.b64encode(sealed).decode()}
    return json.dumps(row, sort_keys=True)


def unwrap(key: Key | None, row: str, bank_id: str, place: str) -> bytes:
    """The data key of a bank.

    Raises:
        StoreKeyError: no key, or not this bank's.
        StoreCorruptError: the row is no such row.
    """
    if key is None:
        raise StoreKeyError(
            f"The bank at {place} is encrypted. Give its key: set {KEY} or {KEY_FILE}, or pass "
            "--key-file PATH (in Python key=...)."
        )
    kdf, wrapped = _read(row, place)
    wrong = StoreKeyError(
        f"This is not the key of the bank at {place}. Give the key that it was encrypted with"
        f" ({'a passphrase' if kdf else '32 bytes, no passphrase'})."
    )
    if key.passphrase != (kdf is not None):
        raise wrong
    try:
        return AesGcm(_wrapping_key(key, kdf)).open(wrapped, _WRAPPED, bank_id)
    except StoreCorruptError:  # the tag is the check value: nothing else has been read yet
        raise wrong from None


def new_data_key() -> bytes:
    return secrets.token_bytes(_BYTES)


def _parsed(given: bytes, name: str) -> Key:
    text = _printable(given)
    if text is None:
        if len(given) == _BYTES:  # drawn at random, these are never printable text
            return Key(given)
        raise ConfigError(
            f"{name} is neither text nor {_BYTES} bytes. Make one: openssl rand -hex {_BYTES}"
        )
    if _HEX.fullmatch(text):
        return Key(bytes.fromhex(text))
    if _BASE64.fullmatch(text):
        usual = text.translate(_USUAL).rstrip("=") + "="
        return Key(base64.b64decode(usual))
    if len(text) < _SHORTEST:
        raise ConfigError(
            f"{name} has {len(text)} characters. Use a passphrase of {_SHORTEST} or more, or "
            f"{2 * _BYTES} hexadecimal digits (openssl rand -hex {_BYTES})."
        )
    return Key(text.encode(), passphrase=True)


def _printable(given: bytes) -> str | None:
    try:
        text = given.decode().strip()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def _file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            given = file.read(1 << 16)
    except OSError as exc:
        raise ConfigError(
            f"The key file {path} cannot be read: {exc.strerror}. Check its path and permissions."
        ) from exc
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        _log.warning("Others may read the key file %s. Run: chmod 600 %s", path, path)
    return given


def _read(row: str, place: str) -> tuple[dict[str, Any] | None, bytes]:
    """Parameters of the passphrase, if it is one, and the wrapped key."""
    try:
        values = json.loads(row)
        kdf = values["kdf"]
        if values["version"] != 1 or (kdf and not _bearable(kdf)):
            raise ValueError("unknown version or parameters")
        return kdf, base64.b64decode(values["wrapped"], validate=True)
    except (ValueError, KeyError, TypeError, binascii.Error) as exc:
        raise StoreCorruptError(
            f"The row that holds the key of {place} is damaged ({exc}). Restore bank.sqlite from "
            "a backup."
        ) from exc


def _bearable(kdf: dict[str, Any]) -> bool:
    n = kdf["n"]
    return (
        kdf["name"] == "scrypt"
        and len(bytes.fromhex(kdf["salt"])) >= 16
        and all(isinstance(kdf[k], int) and 1 <= kdf[k] <= most for k, most in _MOST.items())
        and n > 1
        and n & (n - 1) == 0
    )


def _wrapping_key(key: Key, kdf: Mapping[str, Any] | None) -> bytes:
    if kdf is None:
        return key.secret
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    salt = bytes.fromhex(kdf["salt"])
    scrypt = Scrypt(salt=salt, length=_BYTES, n=kdf["n"], r=kdf["r"], p=kdf["p"])
    return scrypt.derive(key.secret)
