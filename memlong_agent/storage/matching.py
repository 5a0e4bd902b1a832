"""What it means that a memory contains a text.

In: an owner's rows and a text. Out: keys of the memories that contain it.

A memory contains a text when the text stands, letter for letter, in what was said, in what its
chunks say, in its source, its message id, or in a key, text or number of its messages or metadata.
Letter case, compatible forms of one letter (half and full width, ligatures, composed accents) and
the amount of white space make no difference; words are not looked at, so "art" is in "party". In
a document the text may begin in one section and end in the next: both contain it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, product
from typing import Any

from sqlalchemy import Connection

from memlong_agent.errors import ConfigError
from memlong_agent.storage import reads
from memlong_agent.storage.base import StoredMemory
from memlong_agent.storage.batching import batches

_DOCUMENT = "document"


def folded(text: str) -> str:
    """The text without the differences that make none."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def pattern(text: str) -> re.Pattern[str]:
    """What finds the text in folded texts. ConfigError for a blank one."""
    words = folded(text).split()
    if not words:
        raise ConfigError("Forget which text? Pass one that is not blank.")
    return re.compile(r"\s+".join(map(re.escape, words)))


def holds(pattern: re.Pattern[str], texts: Iterable[str]) -> bool:
    return any(pattern.search(folded(text)) for text in texts)


def strings(value: Any) -> Iterator[str]:
    """Every key, text and number of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


def memories_with(conn: Connection, owner_pk: int, pattern: re.Pattern[str]) -> Iterator[int]:
    """Keys of the owner's memories that contain the text; some may come twice."""
    pks = reads.memory_pks(conn, owner_pk, newest_first=False)
    sections: list[tuple[str, int, int, str]] = []
    for batch in batches(pks):
        held = reads.held_texts(conn, batch)
        for memory in reads.stored_memories(conn, batch):
            if holds(pattern, _texts(memory)) or holds(pattern, [held.get(memory.pk, ("", ""))[1]]):
                yield memory.pk
            if memory.role == _DOCUMENT and memory.ordinal is not None:
                key = (memory.source or "", memory.ordinal, memory.pk)
                sections.append((*key, folded(memory.text)))
    for _, group in groupby(sorted(sections), key=lambda each: each[0]):
        yield from _across(list(group), pattern)


def _texts(memory: StoredMemory) -> Iterator[str]:
    yield memory.text
    yield memory.source or ""
    yield memory.message_id or ""
    yield from strings(memory.messages)
    yield from strings(memory.metadata)


def _across(
    sections: Sequence[tuple[str, int, int, str]], pattern: re.Pattern[str]
) -> Iterator[int]:
    """Keys of neighbouring sections of one document of which neither has the text alone.

    A document that was changed and read again has several sections in one place.
    """
    at: dict[int, list[tuple[int, str]]] = {}
    for _, ordinal, pk, text in sections:
        at.setdefault(ordinal, []).append((pk, text))
    for ordinal, here in at.items():
        for (pk, text), (next_pk, next_text) in product(here, at.get(ordinal + 1, ())):
            border = len(text)
            if any(
                found.start() < border < found.end() for found in pattern.finditer(text + next_text)
            ):
                yield from (pk, next_pk)
