"""Banks get a key: a new one when it is made, a plain one by conversion; and get another key.

In: a database, its blobs, a user's key. Out: both with the bank's cipher, or StoreKeyError.
Converting is one transaction: a crash leaves the plain bank, with sealed files that a sweep
removes, or the encrypted one with a mark that what is plain is still to be removed from disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, bindparam, delete, exists, func, select, update

from memlong_agent.errors import StoreError, StoreKeyError, StoreLockedError
from memlong_agent.kv import KVSpec
from memlong_agent.storage import keys, migrations, reads, rows, seal, writes
from memlong_agent.storage.blobs import BlobStore, FileBlobs
from memlong_agent.storage.database import Database
from memlong_agent.storage.items import sealed_item
from memlong_agent.storage.keys import Key
from memlong_agent.storage.models import blobs, chunks, items, memories, meta, owners, vectors

_log = logging.getLogger("memlong_agent.storage")
_ROW, _SECRET = "seal", "secret"
_LEFT = "seal_left"  # what was plain may still be on disk
_BATCH = 200
Progress = Callable[[int, int], None]
"""Called with rows done and rows in all."""


def unlock(db: Database, store: BlobStore, key: Key | None) -> None:
    """Give database and blobs the cipher of a bank that exists; before anything else is read.

    Raises:
        StoreKeyError: the bank is encrypted and the key is missing or wrong; or it is plain and a
            key was given.
    """
    with db.scope() as conn:
        if not migrations.applied(conn):
            return
        row, bank_id = reads.meta_value(conn, _ROW), migrations.bank_id(conn)
        plain = row is None and not _is_new(conn)
    if row is not None:
        _use(db, store, keys.unwrap(key, row, bank_id, db.place))
    elif plain and key is not None:
        raise StoreKeyError(
            f"The bank at {db.place} is not encrypted, but a key was given. Encrypt it: memlong "
            f"encrypt --bank {db.place}; or give no key (unset {keys.KEY} and {keys.KEY_FILE})."
        )


def begin(db: Database, store: BlobStore, key: Key | None) -> None:
    """Make a bank that nobody has written to an encrypted one, if there is a key."""
    if key is None or db.cipher.sealed:
        return
    with db.scope(write=True) as conn:
        mine = reads.meta_value(conn, _ROW) is None and _is_new(conn)
        if mine:
            data_key = _lock(db, conn, key)
    if not mine:
        unlock(db, store, key)  # somebody was faster
        return
    _use(db, store, data_key)
