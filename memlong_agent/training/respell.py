"""Answers spelled anew from any piece of the vocabulary, so that every token learns to be copied.

In: a sample and the pieces. Out: the same sample with one word or number of each answer changed
wherever it stands. Invented words use few of the tokens; the others would be copied wrongly.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from memlong_agent.training.dialogues import MemoryText, Sample, Turn
from memlong_agent.training.words import pick, split_value

_RUN = re.compile(r"[^\W\d_]{3,}|\d+")  # what can be changed: a word, not "at" or "of", or a number
_MOST_PIECES, _MOST_LETTERS = 4, 12
_ECHO = 0.2  # of the new words: one piece stands twice ("Олалол"), so that place counts in copying


def spelling_pieces(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokens of Latin letters only, in lower case, without their space, each once."""
    found = (str(tokenizer.decode([number])).strip() for number in range(len(tokenizer)))
    return tuple(sorted({one.lower() for one in found if one.isalpha() and one.isascii()}))


def respelled(rng: random.Random, sample: Sample, pieces: Sequence[str]) -> Sample:
    """`sample` with other values, still of the training split; as it was where none can be made."""
    for answer in dict.fromkeys(turn.answer for turn in sample.turns if turn.answer):
        runs = [run.span() for run in _RUN.finditer(answer)]
        if not runs:
            continue
        start, end = pick(rng, runs)

        def make(
            rng: random.Random, answer: str = answer, start: int = start, end: int = end
        ) -> str:
            return answer[:start] + _spelled(rng, answer[start:end], pieces) + answer[end:]

        if value := split_value(rng, make, "train"):
            sample = _with_value(sample, answer, value)
    return sample


def _spelled(rng: random.Random, run: str, pieces: Sequence[str]) -> str:
    """Another word in the letter case and script of `run`, or another number of as many digits."""
    if run.isdecimal():
        return str(rng.randrange(10 ** (len(run) - 1), 10 ** len(run)))
    if run.isascii():
        word = _word(rng, pieces)
    else:
        word = "".join(pick(rng, run.lower()) for _ in range(3 + int(rng.random() * 5)))
    return word.upper() if run.isupper() else word.capitalize() if run[0].isupper() else word


def _word(rng: random.Random, pieces: Sequence[str]) -> str:
    parts = [pick(rng, pieces) for _ in range(1 + int(rng.random() * _MOST_PIECES))]
    if rng.random() < _ECHO:
        parts.append(pick(rng, parts))
    return "".join(parts)[:_MOST_LETTERS]


def _with_value(sample: Sample, old: str, new: str) -> Sample:
    whole = re.compile(rf"(?<!\w){re.escape(old)}(?!\w)")

    def changed(text: str) -> str:
        return whole.sub(lambda _: new, text)

    def memory(one: MemoryText) -> MemoryText:
        user, reply, text = map(changed, (one.user, one.reply, one.text))
        return replace(one, user=user, reply=reply, text=text)

    def turn(one: Turn) -> Turn:
        return Turn(*map(changed, (one.user, one.reply, one.answer)))

    after = Sample(tuple(map(memory, sample.memories)), tuple(map(turn, sample.turns)))
    told = [f"{one.user} {one.text}" for one in after.memories]
    told += [one.user for one in after.turns]
    if any(one.answer not in one.reply for one in after.turns) or not any(new in t for t in told):
        return sample  # the old one stands in another word, or was told with "my" for "your"
    return after
