"""Sentences of made-up words, drawn as seldom and as often as words of a real text are.

In: how many, and a seed. Out: the same sentences on every machine. Knows nothing of what they are
used for.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

_SYLLABLES = (
    "ba ce di fo gu ha je ki lo mu na pe ri so tu va we xi yo zu bra cle dri flo gru sta tre"
)
_WORDS = ["".join(three) for three in product(_SYLLABLES.split(), repeat=3)]  # 19,683
_SENTENCE_WORDS = 9


def sentences(count: int, seed: int) -> list[str]:
    """`count` sentences of 9 words; the n-th commonest word has a share of 1/n (Zipf)."""
    rng = np.random.default_rng(seed)
    shares = 1.0 / np.arange(1, len(_WORDS) + 1)
    drawn = rng.choice(len(_WORDS), (count, _SENTENCE_WORDS), p=shares / shares.sum())
    return [" ".join(_WORDS[i] for i in row).capitalize() + "." for row in drawn.tolist()]


def paragraphs(nbytes: int, seed: int) -> Iterator[str]:
    """Paragraphs of 10 sentences until at least `nbytes` are given out; holds 100 at a time."""
    given = 0
    while given < nbytes:
        seed += 1
        pool = sentences(1000, seed)
        for start in range(0, len(pool), 10):
            paragraph = " ".join(pool[start : start + 10]) + "\n\n"
            yield paragraph
            given += len(paragraph)
            if given >= nbytes:
                return
