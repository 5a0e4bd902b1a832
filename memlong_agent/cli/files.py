"""From bytes to text: files and standard input, decoded strictly and piece by piece.

In: a path or `-`, as the user typed it. Out: strings, in memory that does not grow with the file.
A byte that is not UTF-8 is a ConfigError with its offset from the beginning.
"""

from __future__ import annotations

import codecs
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from memlong_agent.errors import ConfigError

_BLOCK_BYTES = 1 << 16


class TextReader:
    """The text of a binary file in blocks, with what was read of it so far."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        status = os.stat(file.fileno()) if _on_disk(file) else None
        self.total = status.st_size if status and stat.S_ISREG(status.st_mode) else None
        """Bytes of the whole file; None for a pipe."""
        self.nbytes = 0
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        while True:
            block = self._file.read(_BLOCK_BYTES)
            held = len(decoder.getstate()[0])  # a character that began in the block before
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as exc:
                raise not_utf8(self._name, self.nbytes - held + exc.start) from None
            self.nbytes += len(block)
            self.characters += len(text)
            yield text
            if not block:
                return

    def bytes_of(self, characters: int) -> float:
        """About how many bytes the first `characters` took."""
        return characters * self.nbytes / max(1, self.characters)


@contextmanager
def opened(path: str) -> Iterator[TextReader]:
    """A file, or standard input for `-`. Raises OSError when it cannot be read."""
    if path == "-":
        yield TextReader(sys.stdin.buffer, "standard input")
        return
    with Path(path).open("rb") as file:
        yield TextReader(file, click.format_filename(path))


def stdin_lines() -> Iterator[str]:
    """The lines of standard input as they arrive."""
    offset = 0
    for raw in sys.stdin.buffer:
        try:
            text = raw.decode()
        except UnicodeDecodeError as exc:
            raise not_utf8("standard input", offset + exc.start) from None
        offset += len(raw)
        yield text


def not_utf8(name: str, offset: int) -> ConfigError:
    """The error of a byte that cannot be read as text."""
    return ConfigError(
        f"{name} is not valid UTF-8 at byte {offset}. Convert it to UTF-8 and try again; "
        "what is remembered already is not written twice."
    )


def _on_disk(file: BinaryIO) -> bool:
    try:
        file.fileno()
    except (AttributeError, OSError):  # a stream in memory, as in tests
        return False
    return True
