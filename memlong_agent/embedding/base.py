"""What every embedder promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memlong_agent.identity import Identity

Vectors = NDArray[np.float32]
NO_LIMIT = 1 << 20  # tokens


class Embedder(Protocol):
    """Turns text into unit vectors. Safe to call from several threads."""

    @property
    def identity(self) -> Identity:
        """What its vectors depend on; the part `embedder` is the name that finds it again."""

    @property
    def dimensions(self) -> int:
        """E; 0 for an embedder that embeds nothing."""

    @property
    def max_tokens(self) -> int:
        """Its own tokens it can read of one text; the rest does not change the vector."""

    @property
    def threshold(self) -> float:
        """Cosine of query and chunk below which a chunk is not recalled, 0 or more."""

    @property
    def share_of_best(self) -> float:
        """Share of the best relevance below which none is recalled, up to 1; 0: all."""

    def embed_query(self, text: str) -> Vectors:
        """A unit vector (E,) of a question; of its last `max_tokens` when it is longer.

        Zeros if it holds nothing that the model knows.
        """

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors (N, E) of texts to be found; of their first `max_tokens`."""


def points_somewhere(vector: Vectors) -> bool:
    """Whether a vector (E,) is neither zero nor broken (not finite).

    Some models answer a text that they do not know with zeros or NaN. No index takes those: such a
    text is found, and such a question answered, by words alone.
    """
    return bool(vector.any() and np.isfinite(vector).all())
