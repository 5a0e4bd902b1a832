"""From text to K/V: what a bank needs of a model, with or without conversations.

In: texts cut by the chunking room. Out: token ids, K/V. Thread-safe. Knows no bank.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from memlong_agent.chunking import PREAMBLE, ChunkText
from memlong_agent.kv import KVChunk
from memlong_agent.model import MemoryModel


class Encoder:
    """One model and its tokenizer."""

    def __init__(self, model: MemoryModel, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._preamble = preamble_ids(tokenizer)
        self._control = _control_tokens(tokenizer)

    def neutral(self, text: str) -> str:
        """The text with every control token of the tokenizer broken by a space.

        `<|user|>` in somebody's text must not open a turn: it becomes `< |user|>`.
        """
        if self._control is None:
            return text
        return self._control.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, neutral and without special tokens."""
        found = self.tokenizer([self.neutral(text) for text in texts], add_special_tokens=False)
        return [list(ids) for ids in found["input_ids"]]

    def encode(self, chunks: Sequence[ChunkText]) -> list[tuple[ChunkText, KVChunk]]:
        """Each chunk with its K/V; the same text gives the same K/V, whatever stands beside it."""
        kv = self.model.encode([chunk.token_ids for chunk in chunks], self._preamble)
        return list(zip(chunks, kv, strict=True))


def preamble_ids(tokenizer: Any) -> list[int]:
    """BOS, if the tokenizer has one, and the preamble that every chunk is encoded after."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [*bos, *tokenizer(PREAMBLE, add_special_tokens=False)["input_ids"]]


def _control_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    added = {str(token) for token in tokenizer.all_special_tokens}
    added |= {str(token) for token in getattr(tokenizer, "get_added_vocab", dict)()}
    controls = sorted((token for token in added if len(token) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, controls))) if controls else None
