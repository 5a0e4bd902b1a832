"""What is derived from the text is made again where it is damaged or missing.

In: a bank, and two functions that make K/V and vectors of chunks. Out: a sentence for each thing
that was done. Text, ids, times and counters are never touched, and nothing that was remembered is
deleted; what cannot be derived is left as it is, for `verify` to name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, delete, insert, select, update

from memlong_agent.errors import StoreCorruptError
from memlong_agent.kv import KVChunk, KVSpec
from memlong_agent.storage import faults, reads, rows, seal, upkeep
from memlong_agent.storage.base import Matrix, StoredChunk
from memlong_agent.storage.batching import batches
from memlong_agent.storage.blobs import BlobStore
from memlong_agent.storage.database import Database
from memlong_agent.storage.lexical import Lexical
from memlong_agent.storage.models import blobs, chunks, owners, vectors

Encode = Callable[[Sequence[StoredChunk]], Sequence[KVChunk]]
Embed = Callable[[Sequence[StoredChunk]], Sequence[Matrix | None]]
_BATCH = 64


def repair(
    db: Database, store: BlobStore, lexical: Lexical, spec: KVSpec, encode: Encode, embed: Embed
) -> list[str]:
    """Make anew what can be derived from the text; a sentence for each kind of thing done."""
    closed = 0 if db.folder is None else close_modes(db.folder)
    done = [
        (closed, "{} files and folders are now closed to other users"),
        (drop_left_over(db), "{} rows of chunks that are gone were deleted"),
        (encode_anew(db, store, spec, encode), "the keys and values of {} chunks were made anew"),
        (embed_anew(db, embed), "the vectors of {} chunks were made anew"),
        (index_anew(db, lexical), "the word index was made anew"),
        (count_anew(db), "the counts of {} owners were corrected"),
    ]
    return [sentence.format(number) for number, sentence in done if number]


def close_modes(folder: Path) -> int:
    """Close to others what is open to them; returns how many files and folders."""
    found = upkeep.modes(folder)
    try:
        for path, mode in found:
            path.chmod(mode)
    except OSError as exc:
        raise faults.from_os(exc, str(folder)) from exc
    return len(found)


def encode_anew(db: Database, store: BlobStore, spec: KVSpec, encode: Encode) -> int:
    """Make the K/V of chunks whose file is missing or damaged; returns of how many."""
    with db.scope() as conn:
        every = list(conn.scalars(select(chunks.c.pk).order_by(chunks.c.pk)))
    made = 0
    for batch in batches(every):
        bad = [pk for pk in batch if not _is_whole(db, store, spec, pk)]
        for some in _chunks(db, bad):
            refs = store.publish(spec, list(encode(some)))
            with db.scope(write=True) as conn:
                store.touch([ref.blob_id for ref in refs])  # see Storage._writing
                mine = blobs.c.chunk_pk.in_([chunk.pk for chunk in some])
                cipher, old = seal.of(conn), conn.scalars(select(blobs.c.blob_id).where(mine)).all()
                there = _still(conn, some)
                for chunk, ref in zip(some, refs, strict=True):
                    if chunk.pk not in there:
                        continue  # forgotten meanwhile; its file is a stray
                    place = rows.chunk_place(chunk.memory_id, chunk.ordinal)
                    checksum = cipher.seal_text(ref.checksum, "blobs.checksum", place)
                    values = {"blob_id": ref.blob_id, "nbytes": ref.nbytes, "checksum": checksum}
                    conn.execute(delete(blobs).where(blobs.c.chunk_pk == chunk.pk))
                    conn.execute(insert(blobs).values(chunk_pk=chunk.pk, **values))
            store.remove(old)
            made += len(some)
    return made


def embed_anew(db: Database, embed: Embed) -> int:
    """Make the vectors of chunks that have none, or one of another length; returns how many."""
    made = 0
    with db.scope() as conn:
        bad = upkeep.without_vector(conn)
    for some in _chunks(db, bad):
        found = embed(some)
        with db.scope(write=True) as conn:
            cipher, there = seal.of(conn), _still(conn, some)
            for chunk, vector in zip(some, found, strict=True):
                if vector is None or chunk.pk not in there:
                    continue
                data = cipher.seal(np.asarray(vector, "<f4").tobytes(), "vectors.vector", chunk.pk)
                conn.execute(delete(vectors).where(vectors.c.chunk_pk == chunk.pk))
                conn.execute(insert(vectors).values(chunk_pk=chunk.pk, vector=data))
                made += 1
    return made


def index_anew(db: Database, lexical: Lexical) -> bool:
    """Make the word index of all chunks, if it disagrees with them; returns whether it did."""
    with db.scope(write=True) as conn:
        if not lexical.disagreements(conn):
            return False
        lexical.empty(conn)
        query = select(chunks.c.owner_id, chunks.c.pk).order_by(chunks.c.owner_id, chunks.c.pk)
        owned: dict[int, list[int]] = {}
        for owner, pk in conn.execute(query):
            owned.setdefault(owner, []).append(pk)
        for owner, pks in owned.items():
            for batch in batches(pks):
                some = reads.stored_chunks(conn, owner, batch)
                lexical.add(conn, owner, [(chunk.pk, chunk.text) for chunk in some])
    return True


def count_anew(db: Database) -> int:
    """Book the chunks and tokens that owners have; returns for how many that was not so."""
    with db.scope(write=True) as conn:
        wrong = upkeep.wrong_counts(conn)
        for owner in wrong:
            change = update(owners).where(owners.c.pk == owner.pk)
            conn.execute(change.values(chunks=owner.has_chunks, tokens=owner.has_tokens))
    return len(wrong)


def drop_left_over(db: Database) -> int:
    """Delete vectors and file names of chunks that are gone; returns how many."""
    gone = 0
    with db.scope(write=True) as conn:
        for table in (blobs, vectors):
            lost = table.c.chunk_pk.not_in(select(chunks.c.pk))
            gone += conn.execute(delete(table).where(lost)).rowcount
    return gone


def _is_whole(db: Database, store: BlobStore, spec: KVSpec, pk: int) -> bool:
    """Whether a chunk can be read; one that is gone has nothing to be damaged."""
    try:
        with db.scope() as conn:
            refs = reads.blob_refs(conn, [pk])
            if not refs:
                return conn.scalar(select(chunks.c.pk).where(chunks.c.pk == pk)) is None
        store.read_many(spec, list(refs.values()))
    except StoreCorruptError:
        return False
    return True


def _chunks(db: Database, pks: Sequence[int]) -> Iterator[list[StoredChunk]]:
    """Records of chunks, whoever owns them, in small batches; those that are gone, or whose text is
    damaged, are left out."""
    for start in range(0, len(pks), _BATCH):
        some = pks[start : start + _BATCH]
        with db.scope() as conn:
            query = select(chunks.c.owner_id).where(chunks.c.pk.in_(some)).distinct()
            found = [
                chunk
                for owner in conn.scalars(query).all()
                for chunk in _readable(conn, owner, some)
            ]
        if found:
            yield found


def _readable(conn: Connection, owner: int, pks: Sequence[int]) -> list[StoredChunk]:
    try:
        return reads.stored_chunks(conn, owner, pks)
    except StoreCorruptError:
        if len(pks) == 1:
            return []
        return [chunk for pk in pks for chunk in _readable(conn, owner, [pk])]


def _still(conn: Connection, some: Sequence[StoredChunk]) -> set[int]:
    return set(conn.scalars(select(chunks.c.pk).where(chunks.c.pk.in_([c.pk for c in some]))))
