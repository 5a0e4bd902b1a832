"""How a message asks: about whom, in which of its sentences, and where to look for the answer.

In: a user's message. Out: whether it asks about who asks, the sentences that ask, and the vector
that is looked for. Knows no bank.
"""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np

from memlong_agent.chunking import BORDER
from memlong_agent.embedding import Embedder, Vectors

# "Tell me" and "remind us" say nothing about who is asked about.
_FIRST_PERSON = re.compile(r"\b(?:i|my|mine|we|our|ours)\b", re.IGNORECASE)
_ASKS = re.compile("[?\uff1f\u061f]\\W*\\Z")  # also as Chinese and Arabic write it


def is_first_person(message: str) -> bool:
    """Whether a question in English is about who asks it, or those beside them.

    By its words: a lone "i" of another language passes too, and other languages' own do not.
    """
    return _FIRST_PERSON.search(message) is not None


def asking_part(message: str) -> str:
    """The sentences of a message that end in a question mark; all of it when none does."""
    borders = [0, *(border.end() for border in BORDER.finditer(message)), len(message)]
    parts = [message[start:end].strip() for start, end in pairwise(borders)]
    asking = [part for part in parts if _ASKS.search(part)]
    some = 0 < len(asking) < sum(map(bool, parts))
    return " ".join(asking) if some else message.strip()


def query_vector(embedder: Embedder, message: str, generated: str = "") -> Vectors:
    """A unit vector (E,) of a message and what is `generated` of its reply so far.

    Small talk beside a question points elsewhere, so what asks counts twice: once in its place,
    once alone.
    """
    whole = embedder.embed_query(f"{message}\n{generated}" if generated else message)
    asking = asking_part(message)
    if asking == message.strip():
        return whole
    both: Vectors = whole + embedder.embed_query(asking)
    length = float(np.linalg.norm(both))
    return both / length if length else whole
