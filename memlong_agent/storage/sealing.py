"""A bank and its key: unlocked when it is opened, encrypted when it is made, and given another key.

In: a database, its blobs, a user's key. Out: both with the bank's cipher, or StoreKeyError. Knows
rows of meta only; conversion.py encrypts what is in a bank already.
"""

from __future__ import annotations

from sqlalchemy import Connection, exists, select

from memlong_agent.errors import StoreKeyError
from memlong_agent.storage import keys, migrations, reads, writes
from memlong_agent.storage.blobs import BlobStore
from memlong_agent.storage.database import Database
from memlong_agent.storage.keys import Key
from memlong_agent.storage.models import items, owners
from memlong_agent.storage.seal import AesGcm

ROW = "seal"
_SECRET, _PLACE = "secret", "meta.value"


def unlock(
    db: Database, store: BlobStore, key: Key | None, *, for_conversion: bool = False
) -> None:
    """Give database and blobs the cipher of the bank; before any value is read.

    Raises:
        StoreKeyError: the bank is encrypted and the key is missing or wrong; or it is plain and a
            key was given, but not `for_conversion`.
    """
    with db.scope() as conn:
        row, bank_id = reads.meta_value(conn, ROW), migrations.bank_id(conn)
        unused = _is_unused(conn)
    if row is not None:
        _use(db, store, keys.unwrap(key, row, bank_id, db.place))
    elif key is not None and not unused and not for_conversion:
        raise StoreKeyError(
            f"The bank at {db.place} is not encrypted, but a key was given. Give none (unset "
            f"{keys.KEY} and {keys.KEY_FILE}), or encrypt it: memlong encrypt {db.options}"
        )


def begin(db: Database, store: BlobStore, key: Key | None) -> None:
    """Make a bank that nobody has written to yet an encrypted one, if there is a key."""
    if key is None or db.cipher.sealed:
        return
    with db.scope(write=True) as conn:
        faster = reads.meta_value(conn, ROW) is not None or not _is_unused(conn)
        data_key = b"" if faster else lock(db, conn, key)
    if faster:
        unlock(db, store, key)
    else:
        _use(db, store, data_key)


def lock(db: Database, conn: Connection, key: Key) -> bytes:
    """Make the bank an encrypted one, inside a transaction; returns its data key.

    The word index in the database goes, so that nobody who takes the bank for a plain one can
    write to it.
    """
    data_key = keys.new_data_key()
    bank_id = migrations.bank_id(conn)
    writes.set_meta(conn, ROW, keys.wrap(key, data_key, bank_id))
    secret = reads.meta_value(conn, _SECRET) or ""
    writes.set_meta(conn, _SECRET, AesGcm(data_key).seal_text(secret, _PLACE, _SECRET))
    writes.new_epoch(conn)
    db.lexical().drop(conn)
    return data_key


def secret_of(db: Database, conn: Connection) -> str:
    """The secret of the bank's text digests."""
    return db.cipher.open_text(reads.meta_value(conn, _SECRET) or "", _PLACE, _SECRET)


def change_key(db: Database, key: Key | None, new: Key) -> None:
    """Wrap the data key of an encrypted bank anew; the old key then opens it no more.

    Values stay as they are: whoever has the old key and an old copy of the bank can read both.

    Raises:
        StoreKeyError: the bank is not encrypted, or `key` is not its key.
    """
    with db.scope(write=True) as conn:
        row, bank_id = reads.meta_value(conn, ROW), migrations.bank_id(conn)
        if row is None:
            raise StoreKeyError(
                f"The bank at {db.place} is not encrypted. Encrypt it: memlong encrypt {db.options}"
            )
        data_key = keys.unwrap(key, row, bank_id, db.place)
        writes.set_meta(conn, ROW, keys.wrap(new, data_key, bank_id))
    db.purge()


def _use(db: Database, store: BlobStore, data_key: bytes) -> None:
    db.cipher = store.cipher = AesGcm(data_key)


def _is_unused(conn: Connection) -> bool:
    """Nobody has claimed it or written to it: a bank that was made a moment ago."""
    written = conn.scalar(select(exists(select(owners.c.pk)) | exists(select(items.c.pk))))
    return not written and reads.meta_value(conn, "encoding") is None
