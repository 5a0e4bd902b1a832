"""An archive read once from end to end, before anything is written.

In: an open file. Out: its rows in a scratch, every one checked, alone and against the others.
ArchiveError at the first thing that no export would have written. Memory is bounded by one part
and one chunk, whatever the file says of itself.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xxhash

from memlong_agent.errors import ArchiveError
from memlong_agent.storage.archive import fields, lines, tensors
from memlong_agent.storage.archive.manifest import MAX_BYTES, NAME, Manifest, read_manifest
from memlong_agent.storage.archive.scratch import ChunkRow, Note, Row, Scratch
from memlong_agent.storage.archive.zipped import Entry, read_entry

Tokenize = Callable[[list[str]], list[list[int]]]
"""Texts in, their token ids out."""
_MAX_SECTION = 256 << 20  # bytes of a part's token ids, and of its vectors
_UNIT = 1e-3  # how far from 1 the length of a vector may be
_TEXTS = 64


def manifest_of(fd: int, entries: Sequence[Entry]) -> Manifest:
    """The manifest, whose list of files must be that of the archive."""
    last = entries[-1]
    if last.name != NAME or last.size > MAX_BYTES:
        raise fields.refused("it", "does not end with a manifest")
    manifest = read_manifest(b"".join(read_entry(fd, last)))
    names = [entry.name for entry in entries[:-1]]
    # Counted first: names() of a lie could be long.
    if sum(manifest.parts.values()) > len(names) or manifest.names() != names:
        raise fields.refused("its manifest", "lists other files than there are")
    if len(manifest.checksums) != len(names):
        raise fields.refused("its manifest", "has not one checksum for each file")
    return manifest


class Verifier:
    """Reads one archive into one scratch."""

    def __init__(
        self,
        fd: int,
        manifest: Manifest,
        scratch: Scratch,
        tokenize: Tokenize | None,
        max_text_bytes: int | None,
    ) -> None:
        """Without `tokenize` token ids are only counted."""
        self._fd, self._manifest, self._scratch = fd, manifest, scratch
        self._tokenize, self._spec = tokenize, manifest.spec
        self._max_text_bytes = max_text_bytes
        self._places = 0

    def run(self, entries: Sequence[Entry], progress: Callable[[float], None]) -> None:
        """Check everything. Raises ArchiveError."""
        total = max(1, sum(entry.size for entry in entries))
        checked = zip(entries, self._manifest.checksums, strict=False)
        for entry, checksum in checked:
            sort, _, ending = entry.name.partition("/")
            with _clashes(entry.name):
                if sort not in ("memories", "items"):
                    self._notes(sort, entry, checksum)
                elif ending.endswith("jsonl"):
                    binary, its_checksum = next(checked)
                    read = self._memories if sort == "memories" else self._items
                    read(_Lines(self._fd, entry, checksum), _Bytes(self._fd, binary, its_checksum))
            progress((entry.start + entry.size) / total)
        if self._scratch.counts() != self._manifest.counts:
            raise fields.refused("its manifest", "counts other memories than there are")
        self._links()

    def _memories(self, texts: _Lines, binary: _Bytes) -> None:
        part = [lines.read_memory(text, where) for text, where in texts]
        parts = [chunk for line in part for chunk in line.chunks]
        ids, vectors, checks = self._sections(parts, binary)
        self._check_tokens(part, ids, texts.name)
        chunks = [
            self._chunk(*each, binary, texts.name)
            for each in zip(parts, ids, vectors, checks, strict=True)
        ]
        binary.finish()
        at = 0
        for line, text in zip(part, texts.raw, strict=True):
            self._check_size(line)
            own = chunks[at : at + len(line.chunks)]
            at += len(own)
            row = Row(self._places, line.id, line.values["rank"], *line.owner, text)
            self._scratch.add(row, own)
            for key in line.unique_keys():
                self._scratch.take_key(xxhash.xxh3_128_hexdigest(key.encode()) + key[:20])
            self._places += 1

    def _check_size(self, line: lines.Line) -> None:
        size, most = len(line.values["text"].encode()), self._max_text_bytes
        if most is not None and size > most:
            raise ArchiveError(
                f"Memory {line.id} of this archive has {size:,} bytes of text, more than "
                f"max_text_bytes={most:,}. Nothing was restored. Raise the setting to take it in."
            )

    def _sections(
        self, parts: Sequence[Mapping[str, Any]], binary: _Bytes
    ) -> tuple[list[bytes], list[bytes | None], list[int]]:
        """Token ids, vector and K/V checksum of each chunk."""
        counts = [each["tokens"] for each in parts]
        pointing = [each["vector"] for each in parts]
        dimensions = self._manifest.dimensions
        sizes = tensors.Sizes(len(parts), sum(counts), sum(pointing), dimensions)
        binary.expect(tensors.header_of(self._spec, sizes), sizes.tokens * self._kv_bytes(1), sizes)
        checks = np.frombuffer(binary.take(8 * sizes.chunks), "<u8").tolist()
        ids = [bytes(binary.take(4 * count)) for count in counts]
        vectors = [
            self._vector(binary.take(4 * dimensions), binary.name) if points else None
            for points in pointing
        ]
        return ids, vectors, checks

    def _kv_bytes(self, tokens: int) -> int:
        return tokens * self._spec.bytes_per_token

    def _vector(self, data: bytearray, where: str) -> bytes:
        vector = np.frombuffer(data, "<f4").astype(np.float64)
        if not vector.size or not abs(float(np.sqrt(vector @ vector)) - 1) <= _UNIT:
            raise fields.refused(where, "has a vector that is not of length 1")
        return bytes(data)

    def _check_tokens(self, part: Sequence[lines.Line], ids: Sequence[bytes], where: str) -> None:
        """Token ids must be those of the chunks' text: what is shown is what is recalled."""
        if self._tokenize is None:
            return
        bodies = [body for line in part for body in line.bodies]
        for start in range(0, len(bodies), _TEXTS):
            expected = self._tokenize(bodies[start : start + _TEXTS])
            for own, given in zip(expected, ids[start : start + _TEXTS], strict=False):
                if np.asarray(own, "<u4").tobytes() != given:
                    raise fields.refused(where, "has a chunk whose token ids are not its text's")

    def _chunk(
        self,
        values: Mapping[str, Any],
        ids: bytes,
        vector: bytes | None,
        check: int,
        binary: _Bytes,
        where: str,
    ) -> ChunkRow:
        at, tokens = binary.at, values["tokens"]
        data = binary.take(self._kv_bytes(tokens))
        if tensors.check_of([memoryview(data)]) != check:
            raise fields.refused(where, "has K/V with a wrong checksum")
        if not torch.frombuffer(data, dtype=self._spec.dtype).isfinite().all():
            raise fields.refused(where, "has K/V that are not finite numbers")
        return ChunkRow(values["ordinal"], tokens, ids, vector, at, check)

    def _items(self, texts: _Lines, binary: _Bytes) -> None:
        dimensions = self._manifest.dimensions
        found = [
            fields.record(fields.loads(text, where), fields.ITEM, where) for text, where in texts
        ]
        sizes = tensors.Sizes(0, 0, sum(each["vectors"] for each in found), dimensions)
        binary.expect(tensors.header_of(None, sizes), 0, sizes)
        for values, text in zip(found, texts.raw, strict=True):
            size = values["vectors"] * dimensions
            data = bytes(binary.take(4 * size))
            if not np.isfinite(np.frombuffer(data, "<f4")).all():
                raise fields.refused(binary.name, "has a vector that is not finite")
            key = repr((values["namespace"], values["key"]))
            self._scratch.take_key("item" + xxhash.xxh3_128_hexdigest(key.encode()))
            note = Note("items", values["memory_id"], None, text, data or None)
            self._scratch.note(note)
        binary.finish()

    def _notes(self, sort: str, entry: Entry, checksum: str) -> None:
        known = fields.RECALL if sort == "recalls" else fields.SUPERSEDED
        texts = _Lines(self._fd, entry, checksum)
        for text, where in texts:
            values = fields.record(fields.loads(text, where), known, where)
            if sort == "recalls":
                key = repr((values["turn"], values["memory_id"], values["chunk"]))
                if values["chunk"] is not None:
                    self._scratch.take_key("recall" + xxhash.xxh3_128_hexdigest(key.encode()))
            else:
                self._scratch.take_key("superseded" + values["memory_id"])
            other = values.get("superseded_by")
            self._scratch.note(Note(sort, values["memory_id"], other, text))

    def _links(self) -> None:
        """What hangs on memories hangs on memories of this archive, of the same owner."""
        for sort in ("items", "recalls", "superseded"):
            for note in self._scratch.notes(sort):
                self._link(sort, note)
        if self._scratch.has_circle():
            raise fields.refused("superseded", "has memories that supersede each other in a circle")

    def _link(self, sort: str, note: Note) -> None:
        values = fields.loads(note.line, sort)
        if note.memory_id is None:
            return
        row = self._scratch.row(note.memory_id)
        if row is None:
            raise fields.refused(sort, "speaks of a memory that is not in it")
        if sort == "items" and values["owner"] != [row.kind, row.name]:
            raise fields.refused(sort, "has an item of another owner than its memory's")
        chunk = values["chunk"] if sort == "recalls" else None
        if chunk is not None and not self._scratch.has_chunk(row.place, chunk):
            raise fields.refused(sort, "speaks of a chunk that is not in it")
        if sort == "superseded":
            self._check_newer(row, self._scratch.row(values["superseded_by"]))

    def _check_newer(self, row: Row, newer: Row | None) -> None:
        if newer is None or (newer.kind, newer.name) != (row.kind, row.name):
            raise fields.refused("superseded", "names a memory that is not the same owner's")


@contextmanager
def _clashes(name: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError:
        raise fields.refused(name, "has a memory, an item or a recall twice") from None


class _Lines:
    """The lines of one entry, each with where it stands; `raw` holds them afterwards."""

    def __init__(self, fd: int, entry: Entry, checksum: str) -> None:
        if entry.size > lines.MAX_LINE:
            raise fields.refused(entry.name, f"is larger than {lines.MAX_LINE:,} bytes")
        self.name = entry.name
        data = b"".join(read_entry(fd, entry))
        if xxhash.xxh3_128_hexdigest(data) != checksum:
            raise fields.refused(self.name, "has a wrong checksum")
        if not data.endswith(b"\n") or data.count(b"\n") > lines.MAX_LINES:
            raise fields.refused(self.name, "has too many lines, or half a line at its end")
        try:
            self.raw = data.decode()[:-1].split("\n")
        except UnicodeDecodeError:
            raise fields.refused(self.name, "is not UTF-8") from None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for number, text in enumerate(self.raw, 1):
            yield text, f"{self.name} line {number}"


class _Bytes:
    """The bytes of one entry, in order."""

    def __init__(self, fd: int, entry: Entry, checksum: str) -> None:
        self.name, self.at = entry.name, entry.data_at
        self._left, self._checksum = entry.size, checksum
        self._blocks = read_entry(fd, entry)
        self._held = memoryview(b"")
        self._digest = xxhash.xxh3_128()

    def expect(self, header: bytes, kv_bytes: int, sizes: tensors.Sizes) -> None:
        """The header, and exactly as many bytes as it speaks of."""
        vectors = 4 * sizes.vectors * sizes.dimensions
        if max(vectors, 4 * sizes.tokens) > _MAX_SECTION:
            raise fields.refused(self.name, "is too large")
        small = 0 if not sizes.chunks else 8 * sizes.chunks + 4 * sizes.tokens
        if self._left != len(header) + small + vectors + kv_bytes:
            raise fields.refused(self.name, "is not as large as its lines say")
        if self.take(len(header)) != header:
            raise fields.refused(self.name, "has another header than its lines ask for")

    def take(self, size: int) -> bytearray:
        if size > self._left:
            raise fields.refused(self.name, "is too short")
        found, done = bytearray(size), 0
        while done < size:
            if not self._held:
                self._held = memoryview(next(self._blocks))
                self._digest.update(self._held)
            some = self._held[: size - done]
            found[done : done + len(some)] = some
            self._held = self._held[len(some) :]
            done += len(some)
        self._left -= size
        self.at += size
        return found

    def finish(self) -> None:
        """Compare the checksums, once everything has been taken."""
        if self._left or next(self._blocks, None) is not None:
            raise fields.refused(self.name, "is longer than its lines say")
        if self._digest.hexdigest() != self._checksum:
            raise fields.refused(self.name, "has a wrong checksum")
