"""How much may be written: most bytes of a text, and most memories of an owner.

In: settings and texts. Out: nothing, or a ConfigError with both numbers. Checked before anything is
tokenized or encoded, which takes much longer than counting bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from memlong_agent.config import Settings
from memlong_agent.errors import ConfigError
from memlong_agent.memory.carriers import Draft


def check_text(settings: Settings, *texts: str) -> None:
    """Refuse what is more, all together, than `max_text_bytes`."""
    most, size = settings.max_text_bytes, sum(map(_size, texts))
    if most is not None and size > most:
        raise ConfigError(
            f"This text has {size:,} bytes, more than max_text_bytes={most:,}. Shorten it, add it "
            "as a document (with a source), or raise max_text_bytes."
        )


def check_draft(settings: Settings, draft: Draft) -> None:
    """The same for what is about to be written; sections are bounded by their chunks."""
    if draft.role != "document":
        check_text(settings, draft.text)
    if draft.metadata:
        try:
            check_text(settings, json.dumps(dict(draft.metadata)))
        except (TypeError, ValueError) as exc:
            if isinstance(exc, ConfigError):
                raise
            # Not JSON: the storage room says so better.


def within_document(settings: Settings, blocks: Iterable[str]) -> Iterator[str]:
    """The blocks of a document, refused where they pass `max_document_bytes`."""
    most, size = settings.max_document_bytes, 0
    for block in blocks:
        size += _size(block)
        if most is not None and size > most:
            raise ConfigError(
                f"This document has more than max_document_bytes={most:,} bytes. Add it in parts, "
                "or raise max_document_bytes; what was read before stays remembered."
            )
        yield block


def _size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
