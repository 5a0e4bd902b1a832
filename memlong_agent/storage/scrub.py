"""Zeros where SQLite's pages hold nothing: what was moved away leaves no copy behind.

`secure_delete` overwrites a row that is deleted where it stands. But when SQLite rearranges a page,
rows move, and their old bytes may stay in the room between the page's cell pointers and its cells
(seen with 3.40: a text that was deleted stayed in one of about 900 cases). That room is zeroed
here, as `VACUUM` would by writing the whole file anew: that takes 11 s where this takes 0.4 s, at
1e5 chunks. The layout of pages is a promise of SQLite: sqlite.org/fileformat2.html.

In: a file of which nobody has pages in the write-ahead log and which nobody writes; the caller sees
to both, and to it that nobody's cached pages outlive this. Readers are not disturbed. The file is
opened once and stays open until the last database of its folder is closed in this process: closing
any descriptor of a file drops all POSIX locks that the process holds on it, SQLite's included.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

_TABLES, _INTERIOR = (2, 5, 10, 13), (2, 5)  # first bytes of b-tree pages, and of inner ones
_BLOCK = 4 << 20
# From here on the first byte of an overflow page, a page number's highest, could be taken for that
# of a b-tree page.
MAX_PAGES = 2 << 24
_PAGE = struct.Struct(">BHHH")  # kind, first free block, cells, where cells begin

_guard = threading.Lock()
_users: Counter[tuple[int, int]] = Counter()
_open: dict[tuple[int, int], int] = {}


def enter(folder: Path) -> tuple[int, int]:
    """A database of the folder is there; what is returned goes to the other calls."""
    status = os.stat(folder)
    key = (status.st_dev, status.st_ino)
    with _guard:
        _users[key] += 1
    return key


def leave(key: tuple[int, int]) -> None:
    """A database of the folder is closed."""
    with _guard:
        _users[key] -= 1
        if not _users[key]:
            del _users[key]
            if key in _open:
                with suppress(OSError):  # it is closed all the same, and was synced when written
                    os.close(_open.pop(key))


def descriptor(key: tuple[int, int], path: Path) -> int:
    """The file, open for reading and writing."""
    with _guard:
        if key not in _open:
            _open[key] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        return _open[key]


def zero_gaps(fd: int) -> bool:
    """Zero what is unused in every b-tree page, durably; False, and nothing is done, if the file is
    too large to tell pages apart (128 GiB)."""
    header = os.pread(fd, 100, 0)
    size = int.from_bytes(header[16:18], "big")
    size = 65536 if size == 1 else size
    total = os.fstat(fd).st_size
    if total // size >= MAX_PAGES:
        return False
    zeros, dirty = bytes(size), False
    for start in range(0, total, _BLOCK):
        block = os.pread(fd, _BLOCK, start)
        for at in range(0, len(block) - size + 1, size):
            first, last = _gap(block, at, 100 if start + at == 0 else 0)
            if last > first and block[at + first : at + last] != zeros[: last - first]:
                os.pwrite(fd, zeros[: last - first], start + at + first)
                dirty = True
    if dirty:
        os.fsync(fd)
    return True


def _gap(block: bytes, at: int, skipped: int) -> tuple[int, int]:
    """Where the unused room of a page begins and ends, from the page's start."""
    kind, _, cells, begin = _PAGE.unpack_from(block, at + skipped)
    if kind not in _TABLES:
        return 0, 0
    return skipped + (12 if kind in _INTERIOR else 8) + 2 * cells, begin or 65536
