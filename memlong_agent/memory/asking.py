"""How a message asks: in which of its sentences, about whom, and where to look for the answer.

In: a user's message. Out: the sentences that ask, whether they are about who asks, and the vector
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
_CLOSERS = "\"'\u201d\u2019\u00bb)]_*.!"
_FEWEST_WORDS = 4  # "Do you know?" names nothing that could be looked for


def asking_part(message: str) -> str:
    """The sentences that end in a question mark, where others stand beside them; else nothing.

    Nothing too when they have fewer than 4 words between spaces: they name nothing.
    """
    borders = [0, *(border.end() for border in BORDER.finditer(message)), len(message)]
    parts = [message[start:end].strip() for start, end in pairwise(borders)]
    asking = [part for part in parts if part.rstrip(_CLOSERS).endswith("?")]
    said = " ".join(asking)
    beside = len(asking) < sum(map(bool, parts))
    return said if beside and len(said.split()) >= _FEWEST_WORDS else ""


def is_first_person(message: str) -> bool:
    """Whether what a message asks, in English, is about who asks, or those beside them.

    By its words: "Charles I" passes too, and so does "i" in a language that has it as a word.
    """
    return _FIRST_PERSON.search(asking_part(message) or message) is not None


def query_vector(embedder: Embedder, message: str, generated: str = "") -> Vectors:
    """A unit vector (E,) of a message and what is `generated` of its reply so far.

    Small talk beside a question points elsewhere, so what asks counts twice: once in its place,
    once alone.
    """
    whole = embedder.embed_query(f"{message}\n{generated}" if generated else message)
    asking = asking_part(message)
    if not asking:
        return whole
    both: Vectors = whole + embedder.embed_query(asking)
    length = float(np.linalg.norm(both))
    return both / length if length else whole
