"""A plain bank becomes an encrypted one: every value and every K/V file is sealed.

In: a plain bank and a key. Out: the bank, encrypted. All rows change in one transaction. A crash
leaves the plain bank, with sealed files that a sweep removes; or the encrypted one, with a mark
that plain bytes are still to be removed from its files, which the next opening does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, Table, bindparam, delete, func, select, update

from memlong_agent.errors import StoreError, StoreLockedError
from memlong_agent.storage import faults, guard, migrations, reads, rows, sealing, upkeep, writes
from memlong_agent.storage.blobs import BlobStore, FileBlobs
from memlong_agent.storage.database import Database
from memlong_agent.storage.folder import open_database
from memlong_agent.storage.items.rows import sealed_item
from memlong_agent.storage.keys import Key
from memlong_agent.storage.kvfile import BlobRef, looks_plain, spec_from_json
from memlong_agent.storage.models import blobs, chunks, items, memories, meta, vectors
from memlong_agent.storage.seal import AesGcm, Cipher
from memlong_agent.storage.upgrade import drop_backups

_log = logging.getLogger("memlong_agent.storage")
_LEFT = "plain_left"  # a row of meta: plain bytes may still be in the bank's files
_BATCH = 200
Progress = Callable[[int, int], None]
"""Called with chunks done and chunks in all."""


def encrypt(
    path: Path | str,
    key: Key,
    *,
    database: str | None = None,
    timeout_s: float = 30.0,
    on_progress: Progress | None = None,
) -> bool:
    """Encrypt the bank in a folder; False if it is encrypted already (under this key).

    Nobody else may use the bank meanwhile; who has it open must open it anew. Takes as much free
    disk as the bank has. Afterwards no plain byte is left in the folder, nor in backups of it that
    `memlong upgrade` made; other copies are not known here.

    Raises:
        StoreError: there is no bank.
        StoreKeyError: it is encrypted under another key.
        StoreLockedError: others kept it busy past the timeout.
        StoreVersionError: it must be upgraded first.
        StoreCorruptError: a K/V file is damaged; nothing was changed.
        IncompatibleMemoryError: it is being rebuilt, or a rebuild was interrupted.
    """
    db, store = _existing(path, database, timeout_s)
    with closing(db), closing(store):
        sealing.unlock(db, store, key, for_conversion=True)
        plain = not db.cipher.sealed
        if plain:
            _convert(db, store, key, on_progress)
        finish(db, store)
    return plain


def change_key(
    path: Path | str,
    key: Key | None,
    new: Key,
    *,
    database: str | None = None,
    timeout_s: float = 30.0,
) -> None:
    """Give an encrypted bank another key; one row changes.

    Values stay as they are sealed: whoever has the old key and an old copy of the bank can read
    this one too.

    Raises:
        StoreKeyError: the bank is not encrypted, or `key` is not its key.
        StoreError, StoreLockedError: as :func:`encrypt`.
    """
    db, store = _existing(path, database, timeout_s)
    with closing(db), closing(store):
        sealing.change_key(db, key, new)


def finish(db: Database, store: BlobStore) -> None:
    """Remove what was plain before the bank was encrypted, if that is still to be done."""
    with db.scope() as conn:
        if reads.meta_value(conn, _LEFT) is None:
            return
    if db.folder is not None:
        try:
            store.drop([path for path in _files(db.folder) if looks_plain(path)])
            drop_backups(db.folder, "the bank before it was encrypted")
        except OSError as exc:
            raise faults.from_os(exc, db.place) from exc
    db.compact()
    with db.scope(write=True) as conn:
        conn.execute(delete(meta).where(meta.c.key == _LEFT))


def finish_if_idle(db: Database, store: BlobStore) -> None:
    """As :func:`finish`; a bank that others are reading is left as it is, with a warning."""
    try:
        finish(db, store)
    except StoreLockedError as exc:
        _log.warning("Plain bytes of before the bank was encrypted are still on disk: %s", exc)


def _existing(
    path: Path | str, database: str | None, timeout_s: float
) -> tuple[Database, FileBlobs]:
    folder = Path(path).expanduser().absolute()
    if not (folder / "kv").is_dir():
        raise StoreError(f"There is no bank at {folder}. Give the folder of a bank (--bank DIR).")
    db = open_database(folder, database, timeout_s)
    try:
        _check_used(db)
    except BaseException:
        db.close()
        raise
    return db, FileBlobs(folder)


def _check_used(db: Database) -> None:
    with db.exclusive() as got:  # a copy may have lost its WAL mode: see migrations.prepare
        if not got:
            raise faults.locked(db.place, db.timeout_s)
        with db.scope() as conn:
            migrations.check(db, conn)
            if not migrations.applied(conn):
                raise StoreError(
                    f"The bank at {db.place} is empty. Open it with the key: a new bank that is "
                    "given one is encrypted."
                )


def _convert(db: Database, store: FileBlobs, key: Key, on_progress: Progress | None) -> None:
    sealed = FileBlobs(store.folder)
    made: list[str] = []
    try:
        with db.scope(write=True) as conn, closing(sealed):
            guard.check_whole(db, conn)
            secret = sealing.secret_of(db, conn)
            data_key = sealing.lock(db, conn, key)
            sealed.cipher = AesGcm(data_key)
            _seal_memories(conn, sealed.cipher, secret)
            _seal_items(conn, sealed.cipher)
            _seal_vectors(conn, sealed.cipher)
            _seal_chunks(conn, sealed.cipher)
            for ids in _seal_files(conn, store, sealed, on_progress):
                made += ids
            writes.set_meta(conn, _LEFT, "1")
    except BaseException:
        upkeep.withdraw(db, store, made)
        raise
    db.cipher = store.cipher = sealed.cipher


def _seal_memories(conn: Connection, cipher: Cipher, secret: str) -> None:
    names = ("text", "messages", "source", "metadata")
    query = select(memories.c.pk, memories.c.id, memories.c.text_digest)
    for found in _all(conn, query.add_columns(*(memories.c[name] for name in names)), memories):
        changes = []
        for row in found:
            values = {name: getattr(row, name) for name in names}
            values["text_digest"] = rows.with_source(secret, row.text_digest, row.source)
            changes.append({"row": row.pk, **rows.memory_values(cipher, row.id, values)})
        _change(conn, memories, changes)


def _seal_items(conn: Connection, cipher: Cipher) -> None:
    names = ("tenant", "namespace", "key", "value", "vectors")
    for found in _all(conn, select(items), items):
        changes = []
        for row in found:
            values = {name: getattr(row, name) for name in names}
            changes.append({"row": row.pk, **sealed_item(cipher, **values)})
        _change(conn, items, changes)


def _seal_vectors(conn: Connection, cipher: Cipher) -> None:
    query = select(vectors.c.chunk_pk.label("pk"), vectors.c.vector)
    for found in _all(conn, query, vectors):
        changes = [
            {"row": row.pk, "vector": cipher.seal(row.vector, "vectors.vector", row.pk)}
            for row in found
        ]
        _change(conn, vectors, changes)


def _seal_chunks(conn: Connection, cipher: Cipher) -> None:
    query = select(chunks, memories.c.id).join(memories, memories.c.pk == chunks.c.memory_pk)
    for found in _all(conn, query, chunks):
        changes = []
        for row in found:
            place = rows.chunk_place(row.id, row.ordinal)
            values = rows.sealed_chunk(cipher, place, row.header, row.text, row.token_ids)
            changes.append({"row": row.pk, **values})
        _change(conn, chunks, changes)


def _seal_files(
    conn: Connection, store: FileBlobs, sealed: FileBlobs, on_progress: Progress | None
) -> Iterator[list[str]]:
    """New files for all K/V; yields the ids of each batch."""
    text = reads.meta_value(conn, "kv_spec")
    if text is None:
        return  # nobody has claimed the bank: it has no chunk
    spec, done = spec_from_json(text), 0
    total = conn.scalar(select(func.count()).select_from(blobs)) or 0
    for found in _all(conn, _BLOBS, blobs):
        old = [BlobRef(row.blob_id, row.tokens, row.nbytes, row.checksum) for row in found]
        new = sealed.publish(spec, store.read_many(spec, old))
        yield [ref.blob_id for ref in new]
        changes = []
        for row, ref in zip(found, new, strict=True):
            place = rows.chunk_place(row.id, row.ordinal)
            checksum = sealed.cipher.seal_text(ref.checksum, "blobs.checksum", place)
            values = {"blob_id": ref.blob_id, "nbytes": ref.nbytes, "checksum": checksum}
            changes.append({"row": row.pk, **values})
        _change(conn, blobs, changes)
        done += len(found)
        if on_progress is not None:
            on_progress(done, total)


_BLOBS = (
    select(blobs, blobs.c.chunk_pk.label("pk"), chunks.c.ordinal, chunks.c.tokens, memories.c.id)
    .join(chunks, chunks.c.pk == blobs.c.chunk_pk)
    .join(memories, memories.c.pk == chunks.c.memory_pk)
)


def _all(conn: Connection, query: Select[Any], table: Table) -> Iterator[Sequence[Any]]:
    """Rows by key, in batches; each has its key as `pk`."""
    (key,), after = table.primary_key.columns, 0
    while found := conn.execute(query.where(key > after).order_by(key).limit(_BATCH)).all():
        yield found
        after = found[-1].pk


def _change(conn: Connection, table: Table, changes: Sequence[dict[str, Any]]) -> None:
    (key,) = table.primary_key.columns
    conn.execute(update(table).where(key == bindparam("row")), changes)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted((folder / "kv").glob("*/*")) if path.is_file())
