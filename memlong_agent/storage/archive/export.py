"""Out of a bank: one moment of it, in one file.

In: a bank's database and files, whose memories. Out: an archive. First all rows are copied in one
read transaction, which is short, so that purging need not wait for an export. Then the K/V files
are read one part at a time. What is forgotten meanwhile is left out: forgetting wins. What is
changed meanwhile makes the export begin anew.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import xxhash
from sqlalchemy import select

from memlong_agent.errors import ArchiveError, StoreCorruptError, StoreLockedError
from memlong_agent.kv import KVChunk, KVSpec
from memlong_agent.storage import faults, reads
from memlong_agent.storage.archive import lines, tensors
from memlong_agent.storage.archive.manifest import NAME, Manifest, name_of, spec_values
from memlong_agent.storage.archive.scratch import ChunkRow, Note, Row, Scratch
from memlong_agent.storage.archive.snapshot import copy_rows
from memlong_agent.storage.archive.zipped import ZipWriter
from memlong_agent.storage.base import Owner
from memlong_agent.storage.blobs import BlobStore
from memlong_agent.storage.database import Database
from memlong_agent.storage.models import memories

Progress = Callable[[float], None]
"""Called with the share that is done, 0 to 1."""
_TRIES = 5
_PART_LINES = 8 << 20  # bytes
_PART_KV = 64 << 20  # bytes
_READ_CHUNKS = 64


class _Changed(Exception):
    """A memory was changed after the rows were copied."""


@dataclass(slots=True)
class _Part:
    """Memories of one part, and how large it is so far."""

    rows: list[tuple[Row, list[ChunkRow]]]
    chunks: int = 0
    line_bytes: int = 0
    kv_bytes: int = 0

    def fits(self, chunks: int, line_bytes: int, kv_bytes: int) -> bool:
        return not self.rows or (
            self.chunks + chunks <= lines.MAX_LINES
            and self.line_bytes + line_bytes <= _PART_LINES
            and self.kv_bytes + kv_bytes <= _PART_KV
        )


class Export:
    """One export of one bank."""

    def __init__(
        self, db: Database, blobs: BlobStore, spec: KVSpec, about: Manifest, now: datetime
    ) -> None:
        self._db, self._blobs, self._spec = db, blobs, spec
        self._about, self._now = about, now

    def write(self, path: Path, owner: Owner | None, progress: Progress) -> Manifest:
        """Write the archive; nothing else is at `path` before it is whole.

        Raises:
            ArchiveError: there is something at `path`, or a memory is too large for an archive.
            StoreError: a disk failed, or a K/V file is damaged.
            StoreLockedError: memories kept changing.
        """
        if os.path.lexists(path):
            raise ArchiveError(f"{path} exists already. Choose another name, or delete it first.")
        try:
            for _ in range(_TRIES):
                with suppress(_Changed), Scratch(path.parent) as scratch:
                    return self._attempt(scratch, path, owner, progress)
        except (OSError, sqlite3.Error) as exc:
            raise faults.from_archive(exc, str(path)) from exc
        raise StoreLockedError(
            f"The bank at {self._db.place} was changed all the time while it was exported. Try "
            "again when fewer memories are updated or evicted."
        )

    def _attempt(
        self, scratch: Scratch, path: Path, owner: Owner | None, progress: Progress
    ) -> Manifest:
        with self._db.scope() as conn:
            copy_rows(conn, scratch, self._about, owner, self._now)
        made = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
        fd = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                manifest = _Writer(self, fd, scratch, progress).run()
                os.fsync(fd)
            finally:
                os.close(fd)
            made = made.rename(path)
            _sync(path.parent)
        except BaseException:
            with suppress(OSError):  # what failed is said, and a hidden file may stay
                made.unlink()
            raise
        return manifest

    def read(self, part: _Part, scratch: Scratch) -> list[list[KVChunk]]:
        """K/V of a part by memory; what was forgotten meanwhile leaves the part."""
        read: list[list[KVChunk]] = []
        kept: list[tuple[Row, list[ChunkRow]]] = []
        for row, parts in part.rows:
            refs = [each.ref for each in parts if each.ref is not None]
            try:
                own: list[KVChunk] = []
                for start in range(0, len(refs), _READ_CHUNKS):
                    some = refs[start : start + _READ_CHUNKS]
                    own += self._blobs.read_many(self._spec, some)
            except StoreCorruptError as exc:
                self._explain(exc, row, [ref.blob_id for ref in refs])
                scratch.leave_out(row.place, row.id)
                continue
            read.append(own)
            kept.append((row, parts))
        part.rows = kept
        return read

    def _explain(self, error: StoreCorruptError, row: Row, blob_ids: Sequence[str]) -> None:
        """Return if the memory was forgotten; else raise why its files could not be read."""
        with self._db.scope() as conn:
            if len(reads.known_blobs(conn, blob_ids)) == len(blob_ids):
                raise error
            if conn.scalar(select(memories.c.pk).where(memories.c.id == row.id)) is not None:
                raise _Changed


class _Writer:
    """The entries of one archive, in order."""

    def __init__(self, export: Export, fd: int, scratch: Scratch, progress: Progress) -> None:
        self._export, self._scratch, self._progress = export, scratch, progress
        self._zip = ZipWriter(fd)
        self._about, self._spec = export._about, export._spec
        self._parts = dict.fromkeys(("memories", "items", "recalls", "superseded"), 0)
        self._checksums: list[str] = []

    def run(self) -> Manifest:
        total, done = max(1, self._scratch.counts()["memories"]), 0
        for part in _grouped(self._scratch, self._spec):
            self._memories(part)
            done += len(part.rows)
            self._progress(0.99 * min(1.0, done / total))
        for some in _notes(self._scratch, "items"):
            self._items(some)
        for sort in ("recalls", "superseded"):
            for some in _notes(self._scratch, sort):
                self._put(sort, "jsonl", [_encoded(note.line) for note in some])
                self._parts[sort] += 1
        manifest = self._manifest()
        self._zip.add(NAME, [manifest.to_json()])
        self._zip.finish()
        self._progress(1.0)
        return manifest

    def _memories(self, part: _Part) -> None:
        kv = self._export.read(part, self._scratch)
        if not part.rows:
            return
        parts = [chunk for _, own in part.rows for chunk in own]
        payload = [tensors.kv_parts(each) for own in kv for each in own]
        checks = np.array([tensors.check_of(each) for each in payload], "<u8")
        vectors = [each.vector for each in parts if each.vector is not None]
        tokens = sum(each.tokens for each in parts)
        sizes = tensors.Sizes(len(parts), tokens, len(vectors), self._about.dimensions)
        self._put("memories", "jsonl", [_encoded(row.line) for row, _ in part.rows])
        binary: list[bytes | memoryview] = [tensors.header_of(self._spec, sizes), checks.tobytes()]
        binary += [each.token_ids for each in parts]
        binary += vectors
        self._put("memories", "safetensors", binary + [view for own in payload for view in own])
        self._parts["memories"] += 1

    def _items(self, some: Sequence[Note]) -> None:
        vectors = [each.vectors for each in some if each.vectors]
        number = sum(map(len, vectors)) // 4 // max(1, self._about.dimensions)
        header = tensors.header_of(None, tensors.Sizes(0, 0, number, self._about.dimensions))
        self._put("items", "jsonl", [_encoded(note.line) for note in some])
        self._put("items", "safetensors", [header, *vectors])
        self._parts["items"] += 1

    def _put(self, sort: str, ending: str, data: Sequence[bytes | memoryview]) -> None:
        digest = xxhash.xxh3_128()
        for each in data:
            digest.update(each)
        self._zip.add(name_of(sort, self._parts[sort], ending), data)
        self._checksums.append(digest.hexdigest())

    def _manifest(self) -> Manifest:
        about = self._about
        return Manifest(
            tenant=about.tenant,
            created_at=about.created_at,
            encoding=about.encoding,
            retrieval=about.retrieval,
            kv=spec_values(self._spec),
            dimensions=about.dimensions,
            counts=self._scratch.counts(),
            parts=self._parts,
            checksums=self._checksums,
        )


def _grouped(scratch: Scratch, spec: KVSpec) -> Iterator[_Part]:
    part = _Part([])
    for row in scratch.rows():
        own = scratch.chunks(row.place)
        size = len(own), len(row.line), sum(each.tokens for each in own) * spec.bytes_per_token
        if not part.fits(*size):
            yield part
            part = _Part([])
        part.rows.append((row, own))
        part.chunks += size[0]
        part.line_bytes += size[1]
        part.kv_bytes += size[2]
    if part.rows:
        yield part


def _notes(scratch: Scratch, what: str) -> Iterator[list[Note]]:
    """Notes of one sort, in parts."""
    some: list[Note] = []
    size = 0
    for note in scratch.notes(what):
        if some and (len(some) == lines.MAX_LINES or size + len(note.line) > _PART_LINES):
            yield some
            some, size = [], 0
        some.append(note)
        size += len(note.line)
    if some:
        yield some


def _encoded(line: str) -> bytes:
    data = line.encode() + b"\n"
    if len(data) > lines.MAX_LINE:
        raise ArchiveError(
            f"A memory of {len(data):,} bytes is too large for an archive, which takes "
            f"{lines.MAX_LINE:,}. Delete it or tell it in parts: {line[:80]!r}"
        )
    return data


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
