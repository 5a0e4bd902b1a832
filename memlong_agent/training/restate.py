"""What the model says back when it is told something: the user's words, in the second person.

In: a message, and the values it must not change. Out: the same with "my" as "your", without a known
opener ("By the way,") or closer ("Thanks!"). A reply that restates puts the fact into the
remembered exchange a second time, where its tokens have read the whole sentence; and an answer is
then a copy, which a small decoder does far better than choosing a span.
"""

from __future__ import annotations

import re
from functools import cache

from memlong_agent.training.phrases import phrases

MOST_WORDS = 40  # of a message that is restated whole; of a longer one, the sentence with a value
CORRECTIONS = ("Correction:", "Actually,", "A change:", "It changed:")
_SECOND = {
    "i am": "you are", "i was": "you were", "am i": "are you", "i'm": "you're", "i've": "you've",
    "i'd": "you'd", "i'll": "you'll", "i": "you", "me": "you", "my": "your", "mine": "yours",
    "myself": "yourself", "we": "you", "us": "you", "our": "your", "ours": "yours",
    "we're": "you're", "we've": "you've", "we'd": "you'd", "we'll": "you'll",
    "ourselves": "yourselves",
}  # fmt: skip
_FIRST_PERSON = re.compile(
    r"(?<![\w'-])(" + "|".join(sorted(_SECOND, key=len, reverse=True)) + r")(?![\w'-])", re.I
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_HOLE = "\ue000"  # stands for a value while the words around it change


def restated(message: str, *values: str) -> str:
    """`message` said back.

    A message of more than `MOST_WORDS` words gives its sentences that hold one of `values`, or its
    first sentence when none does.
    """
    text = _masked(message, values)
    if len(text.split()) > MOST_WORDS:
        text = _sentences_with_a_value(text)
    return _unmasked(second_person(_bare(text)), values)


def sentence_of(text: str, value: str) -> str:
    """The sentence of `text` that holds `value`, word by word."""
    return _unmasked(_sentences_with_a_value(_masked(text, (value,))), (value,))


def _masked(text: str, values: tuple[str, ...]) -> str:
    for n, value in enumerate(values):
        text = text.replace(value, chr(ord(_HOLE) + n))
    return text


def _unmasked(text: str, values: tuple[str, ...]) -> str:
    for n, value in enumerate(values):
        text = text.replace(chr(ord(_HOLE) + n), value)
    return text


def _sentences_with_a_value(text: str) -> str:
    sentences = _SENTENCE_END.split(text)
    return " ".join(one for one in sentences if max(one, default="") >= _HOLE) or sentences[0]


@cache
def _openers() -> tuple[str, ...]:
    known = (*phrases("opener_clause", "any"), *phrases("opener_sentence", "any"), *CORRECTIONS)
    return tuple(sorted(known, key=len, reverse=True))


def _bare(text: str) -> str:
    """`text` without one opener and one closer."""
    opener = next((one for one in _openers() if text.startswith(f"{one} ")), "")
    closer = next((one for one in phrases("closer", "any") if text.endswith(f" {one}")), "")
    return text.removeprefix(opener).removesuffix(closer).strip()


def second_person(text: str) -> str:
    """`text` on one line, as said to the one who said it."""

    def replace(match: re.Match[str]) -> str:
        word = match[1]
        if word.isupper() and len(word) > 1 and not word.startswith("I"):
            return word  # US, ME: not a pronoun
        second = _SECOND[word.casefold()]
        before = text[: match.start()].rstrip()
        begins = bool(before) and before[-1] in ".!?"
        return second[:1].upper() + second[1:] if begins else second

    return " ".join(_FIRST_PERSON.sub(replace, text).split("\n"))
