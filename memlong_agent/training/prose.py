"""Prose: real English that every user has, the documentation inside the standard library.

Out comes a list of pieces of 40 to 110 words, from docstrings (read with `ast`, nothing is
imported or run) and from `pydoc_data.topics`. Another Python version gives other pieces.
Knows nothing of facts, dialogues or training.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_SHORTEST, _LONGEST = 40, 110  # words
_LARGEST_FILE = 400_000  # bytes; larger ones are generated tables
_SKIPPED = frozenset({"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__"})
_MARKUP = re.compile(r"^\s*(>>>|\.\.\.|[-=*~^_+|#]{2,}|[.]{2} )")
_UNDERLINE = re.compile(r"[*=\-~^\"]{3,}")
_LEAST_LETTERS = 0.72  # share of letters and spaces: less is a table, code or a diagram


def _sources() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = (
        path for path in root.rglob("*.py") if not _SKIPPED & set(path.relative_to(root).parts)
    )
    return sorted(path for path in paths if path.stat().st_size < _LARGEST_FILE)


def _docstrings(source: str) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # a template or a file for another version
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _topics() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    source = root / "pydoc_data" / "topics.py"
    if source.is_file():
        tree = ast.parse(source.read_text("utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def _texts() -> Iterator[str]:
    for path in _sources():
        # One text per file: most docstrings are shorter than a piece.
        yield "\n\n".join(_docstrings(path.read_text("utf-8", errors="replace")))
    yield from _topics()


def _paragraphs(text: str) -> Iterator[list[str]]:
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line for line in paragraph.splitlines() if not _MARKUP.match(line)]
        words = _UNDERLINE.sub(" ", " ".join(lines)).split()
        joined = " ".join(words)
        letters = sum(char.isalpha() or char == " " for char in joined)
        if len(words) > 5 and letters >= _LEAST_LETTERS * len(joined):
            yield words


def _pieces(text: str) -> Iterator[str]:
    """Whole paragraphs, joined or cut until a piece has its length."""
    held: list[str] = []
    for words in _paragraphs(text):
        held += words
        while len(held) > _LONGEST:
            yield " ".join(held[:_LONGEST])
            held = held[_LONGEST:]
        if len(held) >= _SHORTEST:
            yield " ".join(held)
            held = []


@cache
def _all_pieces() -> tuple[str, ...]:
    return tuple(dict.fromkeys(piece for text in _texts() for piece in _pieces(text)))


def prose_chunks(seed: int) -> list[str]:
    """All pieces of prose of this Python's standard library, in an order given by `seed`.

    The library is read once per process (a few seconds).
    """
    pieces = list(_all_pieces())
    random.Random(seed).shuffle(pieces)
    return pieces
