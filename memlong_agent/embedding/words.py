"""Embedders without a model: none at all, and a hash of words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import xxhash

from memlong_agent.embedding.base import NO_LIMIT, Vectors
from memlong_agent.identity import Identity


class LexicalOnly:
    """Embeds nothing: memories are found by their words alone."""

    identity = Identity({"embedder": "lexical"})
    dimensions = 0
    max_tokens = NO_LIMIT
    threshold = 0.0
    share_of_best = 0.0

    def embed_query(self, text: str) -> Vectors:
        return np.empty(0, np.float32)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        return np.empty((len(texts), 0), np.float32)


class HashEmbedder:
    """Words and their letter trigrams hashed into 256 signed places; for tests and demonstrations.

    Needs no model and is the same on every machine. Finds shared words, not shared meaning.
    """

    identity = Identity({"embedder": "hash", "version": "2"})
    dimensions = 256
    max_tokens = NO_LIMIT
    threshold = 0.0
    share_of_best = 0.0

    def embed_query(self, text: str) -> Vectors:
        vector = np.zeros(self.dimensions, np.float32)
        for feature, weight in _features(text):
            place = xxhash.xxh3_64_intdigest(feature.encode("utf-8", "replace"))
            vector[place % self.dimensions] += weight if place >> 63 else -weight
        if not vector.any():
            vector[0] = 1.0  # a text without a word
        return vector / np.linalg.norm(vector)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        vectors = [self.embed_query(text) for text in texts]
        return np.array(vectors, np.float32).reshape(len(vectors), self.dimensions)


def _features(text: str) -> Iterator[tuple[str, float]]:
    """Each different word once, short ones lightly, and the trigrams of longer ones."""
    for word in sorted(set(re.findall(r"\w+", text.casefold()))):
        yield f"w {word}", 1.0 if len(word) > 3 else 0.3
        if len(word) > 3:
            padded = f"^{word}$"
            yield from ((f"g {padded[i : i + 3]}", 0.3) for i in range(len(padded) - 2))
