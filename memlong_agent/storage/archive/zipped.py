"""One form of ZIP, byte for byte: entries stored one after another, then their directory.

In: names and bytes. Out: a file that every ZIP program reads, and the entries of such a file again.
Everything but names, sizes and CRCs is fixed (no compression, no comments, one date, mode 0600), so
a reader compares instead of interpreting: two entries in one place, a link, a password, a bomb, a
byte too many are all another file than the one prescribed. Stored, because K/V do not compress.
It knows no memory.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from memlong_agent.errors import ArchiveError

MAX_ENTRIES = 100_000
_MAX_NAME = 64
_BLOCK = 1 << 20
_DATE = 0x21  # 1 January 1980, the first day that ZIP knows
_VERSION = 45  # of the format that knows sizes above 4 GiB
_UNIX = 3 << 8
_MODE = 0o100600 << 16
_FAR = 0xFFFFFFFF  # "the real size is in the extra field"
_LOCAL = struct.Struct("<4s5H3I2H")
_LOCAL_EXTRA = struct.Struct("<2H2Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_CENTRAL_EXTRA = struct.Struct("<2H3Q")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_END = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, _FAR, _FAR, 0)
_TAIL = _END64.size + _LOCATOR.size + len(_END)
_ENTRY = _CENTRAL.size + _CENTRAL_EXTRA.size  # and the name


@dataclass(frozen=True, slots=True)
class Entry:
    """One file inside."""

    name: str
    size: int
    crc: int
    start: int
    """Offset of its local header."""

    @property
    def data_at(self) -> int:
        """Offset of its first byte."""
        return self.start + len(_local(self))


class ZipWriter:
    """Appends entries to an open file, which it never closes."""

    def __init__(self, fd: int) -> None:
        self._fd, self._at = fd, 0
        self._entries: list[Entry] = []

    def add(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        """One entry. Raises OSError, and ArchiveError when there are too many."""
        if len(self._entries) == MAX_ENTRIES:
            raise ArchiveError(
                f"An archive holds at most {MAX_ENTRIES} files. Export one owner at a time."
            )
        start = self._at
        empty = Entry(name, 0, 0, start)
        self._write(_local(empty))
        crc, size = 0, 0
        for part in parts:
            crc, size = zlib.crc32(part, crc), size + memoryview(part).nbytes
            self._write(part)
        entry = Entry(name, size, crc, start)
        os.pwrite(self._fd, _local(entry), start)
        self._entries.append(entry)

    def finish(self) -> int:
        """Write the directory; returns the size of the whole file."""
        for part in _directory(self._entries, self._at):
            self._write(part)
        return self._at

    def _write(self, data: bytes | memoryview) -> None:
        left = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        while left:
            done = os.pwrite(self._fd, left, self._at)
            self._at += done
            left = left[done:]


def read_entries(fd: int, size: int) -> list[Entry]:
    """The entries of a file of `size` bytes, in order. Raises ArchiveError, OSError.

    Directory and local headers must be what :class:`ZipWriter` writes for these names, sizes and
    CRCs; the CRCs themselves are compared by :func:`read_entry`.
    """
    tail_at = size - _TAIL
    tail = _read(fd, tail_at, _TAIL) if tail_at >= 0 else b""
    if not tail.endswith(_END):
        raise _strange("it does not end as an archive does; perhaps it is cut off")
    count, directory_at = _END64.unpack_from(tail)[7], _END64.unpack_from(tail)[9]
    space = tail_at - directory_at
    if not 0 < count <= MAX_ENTRIES or not 0 <= space <= count * (_ENTRY + _MAX_NAME):
        raise _strange(f"its directory of {count} files cannot be true")
    directory = _read(fd, directory_at, space)
    entries = list(_parsed(directory, count))
    if b"".join(_directory(entries, directory_at)) != directory + tail:
        raise _strange("its directory is not as memlong writes it")
    _check_places(fd, entries, directory_at)
    return entries


def read_entry(fd: int, entry: Entry) -> Iterator[bytearray]:
    """The bytes of one entry in blocks of at most 1 MiB; ArchiveError at the end on a wrong CRC."""
    at, end, crc = entry.data_at, entry.data_at + entry.size, 0
    while at < end:
        block = _read(fd, at, min(_BLOCK, end - at))
        crc = zlib.crc32(block, crc)
        at += len(block)
        yield block
    if crc != entry.crc:
        raise _strange(f"the checksum of {entry.name} is wrong")


def read_bytes(fd: int, at: int, size: int) -> bytearray:
    """Some bytes of the file, unchecked. ArchiveError beyond its end."""
    return _read(fd, at, size)


def _check_places(fd: int, entries: list[Entry], end: int) -> None:
    """One after another without a gap, from the first byte to the directory."""
    at, seen = 0, set()
    for entry in entries:
        header = _local(entry)
        # Before the read: an absurd size must not become an absurd offset.
        if entry.start != at or entry.size > end or entry.name in seen:
            raise _strange(f"{entry.name!r} is not where it must be, or is there twice")
        if _read(fd, at, len(header)) != header:
            raise _strange(f"{entry.name!r} has another header than in the directory")
        seen.add(entry.name)
        at = entry.data_at + entry.size
    if at != end:
        raise _strange("there are bytes between its files and its directory")


def _parsed(directory: bytearray, count: int) -> Iterator[Entry]:
    at = 0
    for _ in range(count):
        if at + _ENTRY > len(directory):
            raise _strange("its directory is cut off")
        fields = _CENTRAL.unpack_from(directory, at)
        crc, length = fields[7], fields[10]
        at += _CENTRAL.size
        name = directory[at : at + length]
        at += length
        if not 0 < length <= _MAX_NAME or not name.isascii() or at + 28 > len(directory):
            raise _strange("one of its files has a name that memlong does not give")
        _, _, size, _, start = _CENTRAL_EXTRA.unpack_from(directory, at)
        at += _CENTRAL_EXTRA.size
        yield Entry(name.decode("ascii"), size, crc, start)


def _local(entry: Entry) -> bytes:
    name = entry.name.encode("ascii")
    fixed = (_VERSION, 0, 0, 0, _DATE, entry.crc, _FAR, _FAR, len(name), _LOCAL_EXTRA.size)
    extra = _LOCAL_EXTRA.pack(1, 16, entry.size, entry.size)
    return _LOCAL.pack(b"PK\3\4", *fixed) + name + extra


def _directory(entries: list[Entry], at: int) -> Iterator[bytes]:
    size = 0
    for entry in entries:
        name = entry.name.encode("ascii")
        fixed = (_UNIX | _VERSION, _VERSION, 0, 0, 0, _DATE, entry.crc, _FAR, _FAR, len(name))
        extra = _CENTRAL_EXTRA.pack(1, 24, entry.size, entry.size, entry.start)
        line = _CENTRAL.pack(b"PK\1\2", *fixed, len(extra), 0, 0, 0, _MODE, _FAR) + name + extra
        size += len(line)
        yield line
    count = len(entries)
    versions = (_UNIX | _VERSION, _VERSION)
    yield _END64.pack(b"PK\6\6", _END64.size - 12, *versions, 0, 0, count, count, size, at)
    yield _LOCATOR.pack(b"PK\6\7", 0, at + size, 1)
    yield _END


def _read(fd: int, at: int, size: int) -> bytearray:
    found = bytearray(size)
    target, done = memoryview(found), 0
    while done < size:
        got = os.preadv(fd, [target[done:]], at + done)
        if got == 0:
            raise _strange("it is cut off")
        done += got
    return found


def _strange(what: str) -> ArchiveError:
    return ArchiveError(
        f"This is not an archive that memlong wrote: {what}. Nothing was restored. Export again, "
        "or take another copy of the file."
    )
