"""Values sealed one by one with AES-256-GCM, each bound to the place where it is kept.

In: bytes, texts, JSON and the name of their place (column and row). Out: the same sealed, and back
again; a value that was changed, or stands in another place, is refused. `PLAIN` does nothing, so
that a bank without a key takes the same path. Knows no table and no key of a user: keys.py does.

A sealed value is 12 random bytes, the ciphertext and 16 bytes of tag. Random nonces are safe for
2**32 values under one key, which is a bank of some 400 million memories.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection

from memlong_agent.errors import ConfigError, StoreCorruptError

Text = TypeVar("Text", str, str | None)
_NONCE = 12
_TAG = 16
_PREFIX = "sealed:"
OPTION = "memlong_cipher"
"""Execution option under which a connection carries its bank's cipher."""


class Cipher(Protocol):
    """Seals and opens the values of one bank; None stays None. Thread-safe.

    `place` is the column (`chunks.text`), `row` what identifies the row for ever. Opening raises
    StoreCorruptError for what was not sealed for this place by this bank.
    """

    sealed: bool
    """Whether anything is sealed at all."""
    overhead: int
    """Bytes that sealing adds."""

    def seal(self, data: bytes, place: str, row: object) -> bytes: ...

    def open(self, data: bytes | memoryview, place: str, row: object) -> bytes: ...

    def seal_text(self, text: Text, place: str, row: object) -> Text: ...

    def open_text(self, text: Text, place: str, row: object) -> Text: ...

    def seal_json(self, value: Any, place: str, row: object) -> Any: ...

    def open_json(self, value: Any, place: str, row: object) -> Any: ...


class Plain:
    """Nothing is sealed."""

    sealed = False
    overhead = 0

    def seal(self, data: bytes, place: str, row: object) -> bytes:
        return data

    def open(self, data: bytes | memoryview, place: str, row: object) -> bytes:
        return data if isinstance(data, bytes) else bytes(data)

    def seal_text(self, text: Text, place: str, row: object) -> Text:
        return text

    open_text = seal_text

    def seal_json(self, value: Any, place: str, row: object) -> Any:
        return value

    open_json = seal_json


class AesGcm:
    """All values under one data key of 32 bytes. ConfigError without the extra [encrypt]."""

    sealed = True
    overhead = _NONCE + _TAG

    def __init__(self, key: bytes) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise ConfigError(
                "Encryption needs the package cryptography. Install it: pip install "
                "'memlong-agent[encrypt]'"
            ) from None
        self._aead, self._refused = AESGCM(key), InvalidTag

    def seal(self, data: bytes, place: str, row: object) -> bytes:
        nonce = os.urandom(_NONCE)
        return nonce + self._aead.encrypt(nonce, data, _bound(place, row))

    def open(self, data: bytes | memoryview, place: str, row: object) -> bytes:
        try:
            return self._aead.decrypt(data[:_NONCE], data[_NONCE:], _bound(place, row))
        except (self._refused, ValueError):  # ValueError: shorter than a nonce
            raise _moved(place, row) from None

    def seal_text(self, text: Text, place: str, row: object) -> Text:
        if text is None:
            return None
        return _PREFIX + base64.b64encode(self.seal(text.encode(), place, row)).decode()

    def open_text(self, text: Text, place: str, row: object) -> Text:
        if text is None:
            return None
        if not isinstance(text, str) or not text.startswith(_PREFIX):
            raise _moved(place, row)  # whoever can write a plain text here is not the bank
        try:
            data = binascii.a2b_base64(text[len(_PREFIX) :])
        except (binascii.Error, ValueError):
            raise _moved(place, row) from None
        return self.open(data, place, row).decode()

    def seal_json(self, value: Any, place: str, row: object) -> Any:
        return None if value is None else self.seal_text(json.dumps(value), place, row)

    def open_json(self, value: Any, place: str, row: object) -> Any:
        text = self.open_text(value, place, row)
        return None if text is None else json.loads(text)


PLAIN: Cipher = Plain()


def of(conn: Connection) -> Cipher:
    """The cipher of the bank that a transaction works on; Database.scope puts it there."""
    found: Cipher = conn.get_execution_options().get(OPTION, PLAIN)
    return found


def _bound(place: str, row: object) -> bytes:
    return f"{place}\x1f{row}".encode()


def _moved(place: str, row: object) -> StoreCorruptError:
    return StoreCorruptError(
        f"{place} of {row} cannot be opened: it was changed, or moved there from another place, "
        "by something else than memlong-agent. Restore the bank from a backup, or forget this "
        "memory."
    )
