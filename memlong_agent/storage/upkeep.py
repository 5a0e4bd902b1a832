"""Housekeeping: what a crash leaves behind is removed, what is damaged is named.

In: a database, a blob store, a word index. Nothing here runs in a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select

from memlong_agent.errors import MemLongError, StoreCorruptError, StoreKeyError
from memlong_agent.kv import KVSpec
from memlong_agent.storage import reads, writes
from memlong_agent.storage.base import Swept
from memlong_agent.storage.batching import batches
from memlong_agent.storage.blobs import BlobStore
from memlong_agent.storage.database import Database
from memlong_agent.storage.items.rows import stored_items
from memlong_agent.storage.kvfile import BlobRef
from memlong_agent.storage.lexical import Lexical
from memlong_agent.storage.models import (
    blobs,
    chunks,
    items,
    memories,
    migrations,
    owners,
    vectors,
)

_VERIFY_BATCH = 64
_PROGRAMS = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


@dataclass(frozen=True, slots=True)
class Condition:
    """What is no fault of a bank, but worth knowing."""

    schema: str
    """The newest schema step."""
    database: str
    """Program and version that hold the rows."""
    encrypted: bool
    word_index_s: float | None
    """Seconds that building an encrypted bank's word index in memory took when it was opened."""
    pending: int
    """Memories of turns that run, or died less than the grace period ago."""
    expired: int
    """Memories whose time is over and that are still there; never recalled."""


def condition(db: Database, now: datetime, word_index_s: float | None) -> Condition:
    """Reads three numbers and two names."""
    expired = memories.c.expires_at <= now
    with db.scope() as conn:
        version = ".".join(map(str, conn.dialect.server_version_info or ()))
        steps = select(migrations.c.name).order_by(migrations.c.number.desc()).limit(1)
        return Condition(
            schema=conn.scalar(steps) or "",
            database=f"{_PROGRAMS[conn.dialect.name]} {version}",
            encrypted=db.cipher.sealed,
            word_index_s=word_index_s,
            pending=_number(conn, memories.c.pending.is_not(None)),
            expired=_number(conn, expired),
        )


def _number(conn: Connection, which: ColumnElement[bool]) -> int:
    return conn.scalar(select(func.count()).select_from(memories).where(which)) or 0


def sweep(db: Database, store: BlobStore, lexical: Lexical, now: datetime, grace_s: float) -> Swept:
    """Delete pending memories of dead turns and files without rows, whose time is `grace_s` or more
    from now: what comes from the future was written before the clock was put back."""
    with db.scope(write=True) as conn:
        removed, unused = _sweep_pending(conn, lexical, now, timedelta(seconds=grace_s))
        writes.set_meta(conn, "swept_at", now.isoformat())
    store.remove(unused)
    strays = store.strays(lambda prefix: _ids_with_prefix(db, prefix), grace_s)
    if strays:
        with db.scope(write=True) as conn:  # so that none gets its row while it goes
            known = reads.known_blobs(conn, [path.stem for path in strays])
            strays = [path for path in strays if path.stem not in known]
            store.drop(strays)
    return Swept(files=len(strays), memories=removed)


def withdraw(db: Database, store: BlobStore, blob_ids: Sequence[str]) -> None:
    """Remove published files whose rows were not written.

    Asks first: an interrupt may arrive just after the commit, and then these have rows. What cannot
    be asked or removed now is a stray for the sweep.
    """
    with suppress(MemLongError):
        try:
            with db.settled() as conn:
                kept = reads.known_blobs(conn, blob_ids)
        except StoreKeyError:  # encrypted meanwhile: these are plain, no row names them now
            kept = set()
        store.remove(set(blob_ids) - kept)


def sweep_is_due(conn: Connection, now: datetime, grace_s: float) -> bool:
    """Whether the last sweep is at least `grace_s` old: listing 1e6 files at each open is slow."""
    last = reads.meta_value(conn, "swept_at")
    if last is None:
        return True
    age_s = (now - datetime.fromisoformat(last)).total_seconds()
    return age_s >= grace_s or age_s < 0


def verify(
    db: Database, store: BlobStore, lexical: Lexical, spec: KVSpec | None, grace_s: float
) -> list[str]:
    """One sentence for each thing that is wrong; reads every file."""
    with db.scope() as conn:
        problems = db.problems(conn) + _row_problems(conn, lexical)
        problems += _sealed_problems(conn) if db.cipher.sealed else []
        pks = list(conn.scalars(select(blobs.c.chunk_pk).order_by(blobs.c.chunk_pk)))
    if spec is not None:
        for start in range(0, len(pks), _VERIFY_BATCH):
            problems += _blob_problems(db, store, spec, pks[start : start + _VERIFY_BATCH])
    strays = store.strays(lambda prefix: _ids_with_prefix(db, prefix), grace_s)
    problems += [
        f"{path} belongs to no chunk; memlong doctor --repair removes it" for path in strays
    ]
    found = [] if db.folder is None else modes(db.folder)
    return problems + [f"{path} is open to others; its mode should be {m:o}" for path, m in found]


def modes(folder: Path) -> list[tuple[Path, int]]:
    """What others than its user may read or write in a bank's folder, with the mode it should
    have: 0700 for folders, 0600 for files."""
    found = []
    for path in [folder, *folder.rglob("*")]:
        with suppress(FileNotFoundError):  # forgotten while we looked
            if path.stat().st_mode & 0o077:
                found.append((path, 0o700 if path.is_dir() else 0o600))
    return found


def _sweep_pending(
    conn: Connection, lexical: Lexical, now: datetime, grace: timedelta
) -> tuple[int, list[str]]:
    at = memories.c.pending_at
    stale = select(memories.c.owner_id, memories.c.pk).where(
        memories.c.pending.is_not(None), (at <= now - grace) | (at >= now + grace)
    )
    by_owner: dict[int, list[int]] = {}
    for owner, pk in conn.execute(stale):
        by_owner.setdefault(owner, []).append(pk)
    unused: list[str] = []
    for owner, pks in by_owner.items():
        unused += writes.remove_memories(conn, lexical, owner, pks)
    return sum(map(len, by_owner.values())), unused


def _ids_with_prefix(db: Database, prefix: str) -> set[str]:
    # Two hexadecimal digits; "g" sorts after every id that begins with them.
    in_range = (blobs.c.blob_id >= prefix) & (blobs.c.blob_id < prefix + "g")
    with db.scope() as conn:
        return set(conn.scalars(select(blobs.c.blob_id).where(in_range)))


def _blob_problems(db: Database, store: BlobStore, spec: KVSpec, pks: list[int]) -> list[str]:
    problems: list[str] = []
    refs: dict[int, BlobRef] = {}
    with db.scope() as conn:
        problems += _damaged(lambda some: refs.update(reads.blob_refs(conn, some)), pks)
    for ref in refs.values():
        try:
            store.read_many(spec, [ref])
        except StoreCorruptError as exc:
            with db.scope() as conn:
                if reads.known_blobs(conn, [ref.blob_id]):  # else forgotten while we looked
                    problems.append(str(exc))
    return problems


def _sealed_problems(conn: Connection) -> list[str]:
    """Values that were changed, or put in another's place."""
    problems: list[str] = []
    for owner in conn.scalars(select(owners.c.pk)).all():
        mine = select(chunks.c.pk).where(chunks.c.owner_id == owner)
        own = conn.scalars(mine.order_by(chunks.c.pk)).all()
        read = partial(reads.stored_memories, conn)
        problems += _damaged(read, reads.memory_pks(conn, owner, newest_first=False))
        problems += _damaged(partial(reads.stored_chunks, conn, owner), own)
        problems += _damaged(partial(reads.vectors_of, conn, owner), own)
    every = conn.scalars(select(items.c.pk).order_by(items.c.pk)).all()
    return problems + _damaged(partial(stored_items, conn), every)


def _damaged(read: Callable[[list[int]], object], pks: Sequence[int]) -> list[str]:
    """What is said of each key that cannot be read, of which most can."""
    problems: list[str] = []
    for batch in batches(pks):
        with suppress(StoreCorruptError):
            read(batch)
            continue
        for pk in batch:
            try:
                read([pk])
            except StoreCorruptError as exc:
                problems.append(str(exc))
    return problems


def without_vector(conn: Connection) -> list[int]:
    """Keys of chunks without a vector, or with one of another length than most; none in a bank
    that was written under a lexical-only embedder."""
    length = func.length(vectors.c.vector)
    usual = conn.execute(
        select(length).group_by(length).order_by(func.count().desc(), length).limit(1)
    ).scalar()
    if usual is None:
        return []
    good = select(vectors.c.chunk_pk).where(length == usual)
    return list(conn.scalars(select(chunks.c.pk).where(chunks.c.pk.not_in(good))))


def wrong_counts(conn: Connection) -> list[Row[Any]]:
    """Owners who are booked with other numbers than they have: rows of pk, name, chunks, tokens,
    has_chunks, has_tokens."""
    mine = chunks.c.owner_id == owners.c.pk
    count = select(func.count()).where(mine).scalar_subquery()
    total = select(func.coalesce(func.sum(chunks.c.tokens), 0)).where(mine).scalar_subquery()
    booked = (owners.c.pk, owners.c.name, owners.c.chunks, owners.c.tokens)
    query = select(*booked, count.label("has_chunks"), total.label("has_tokens"))
    wrong = query.where((owners.c.chunks != count) | (owners.c.tokens != total))
    return list(conn.execute(wrong))


def _row_problems(conn: Connection, lexical: Lexical) -> list[str]:
    problems: list[str] = []
    filed = select(blobs.c.chunk_pk)
    lost = conn.scalars(select(chunks.c.pk).where(chunks.c.pk.not_in(filed)))
    problems += [f"chunk {pk} has no K/V file" for pk in lost]
    problems += [f"chunk {pk} has no vector" for pk in without_vector(conn)]
    problems += lexical.disagreements(conn)
    return problems + [
        f"owner {row.name!r} is booked with {row.chunks} chunks and {row.tokens} tokens, but has "
        f"{row.has_chunks} and {row.has_tokens}"
        for row in wrong_counts(conn)
    ]
