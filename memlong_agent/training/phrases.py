"""Phrases: the frames around a fact and a question, small talk, and chatter that says nothing.

In comes a seeded `random.Random` and the set of wordings; out come openers, closers, question
frames and whole small-talk turns from `phrases.txt`. Every fifth phrase of a section is held out.
Knows nothing of facts: a clause or a question goes in, the same one comes out in a frame.
"""

from __future__ import annotations

import random
import re
from functools import cache
from importlib.resources import files

from memlong_agent.training.templates import Ask, AskForm, Wordings
from memlong_agent.training.words import pick

_HELD_OUT_EVERY = 5
_WHAT_IS = re.compile(r"\b([Ww])hat('s| is| was| \{x\} is)")


@cache
def _sections() -> dict[str, tuple[str, ...]]:
    text = files("memlong_agent.training").joinpath("phrases.txt").read_text("utf-8")
    sections: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            current.append(line)
    return {name: tuple(lines) for name, lines in sections.items()}


@cache
def phrases(section: str, wordings: Wordings) -> tuple[str, ...]:
    """The phrases of a section that belong to a set of wordings."""
    lines = _sections()[section]
    if wordings == "any":
        return lines
    held_out = wordings == "held_out"
    return tuple(
        line
        for at, line in enumerate(lines)
        if (at % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1) == held_out
    )


@cache
def _pieces(sentence: str) -> tuple[tuple[str, str, bool], ...]:
    """A chatter line as (text, section of the hole after it or "", capitalize it)."""
    result = []
    head, *rest = sentence.split("{")
    for part in rest:
        name, _, tail = part.partition("}")
        result.append((head, name.rstrip("!"), name.endswith("!")))
        head = tail
    result.append((head, "", False))
    return tuple(result)


@cache
def _fillers(section: str) -> tuple[str, ...]:
    """The words that fill a hole of a chatter line: one line of the file, comma separated."""
    return tuple(_sections()[section][0].split(", "))


def chatter(rng: random.Random, wordings: Wordings) -> str:
    """A sentence about the day that carries no fact."""
    parts = []
    for text, section, capital in _pieces(pick(rng, phrases("chatter", wordings))):
        parts.append(text)
        if section:
            word = pick(rng, _fillers(section))
            parts.append(word.capitalize() if capital else word)
    return "".join(parts)


def long_chatter(rng: random.Random, wordings: Wordings, count: int) -> str:
    """At least `count` words of chatter, in whole sentences."""
    sentences: list[str] = []
    total = 0
    while total < count:
        sentence = chatter(rng, wordings)
        if sentence not in sentences:
            sentences.append(sentence)
            total += sentence.count(" ") + 1
    return " ".join(sentences)


@cache
def _smalltalk(wordings: Wordings) -> tuple[tuple[str, str], ...]:
    pairs = (line.split(" = ") for line in phrases("smalltalk", wordings))
    return tuple((said, reply) for said, reply in pairs)


def smalltalk(rng: random.Random, wordings: Wordings) -> tuple[str, str]:
    """A greeting, thanks or a question about the model, with its fixed reply."""
    return pick(rng, _smalltalk(wordings))


def capital(text: str) -> str:
    """`text` with its first letter in upper case, the rest untouched."""
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    return text if text.startswith(("I ", "I'")) else text[:1].lower() + text[1:]


@cache
def _frames(form: AskForm, wordings: Wordings) -> tuple[str, ...]:
    if form != "who":
        return phrases(f"ask_{form}", wordings)
    frames = phrases("ask_np", wordings)
    return tuple(_WHAT_IS.sub(lambda match: f"{match[1]}ho{match[2]}", frame) for frame in frames)


def frame_question(rng: random.Random, ask: Ask, wordings: Wordings) -> str:
    """The question in one of the frames of its form; now and then after a word about the day."""
    frame = pick(rng, _frames(ask.form, wordings))
    if "{X}" in frame:
        question = frame.replace("{X}", capital(ask.text))
    else:
        text = _lower(ask.text) if ask.form == "question" else ask.text
        question = frame.replace("{x}", text)
    chance = rng.random()
    if chance < 0.08:
        return question.rstrip("?.").lower() if chance < 0.03 else question.rstrip("?.")
    question = capital(question)
    if chance < 0.16:
        return f"{chatter(rng, wordings)} {question}"
    if chance < 0.19:
        return f"{question} Thanks!"
    return question


def frame_tell(
    rng: random.Random, clause: str, wordings: Wordings, *, keep_case: bool = False
) -> str:
    """The clause as a message: opener, end mark or tail, closer, chatter around it.

    `clause` may hold `{v}`, which stays open. With `keep_case` its first letter is never changed.
    """
    chance = rng.random()
    if chance < 0.07 and not keep_case:
        return clause  # typed in a hurry: no capital, no full stop
    opener = ""
    if chance < 0.5 or keep_case:
        opener = pick(rng, phrases("opener_clause", wordings)) + " "
    elif chance < 0.6:
        opener = pick(rng, phrases("opener_sentence", wordings)) + " "
    if not opener or opener[-2] in ".!":
        clause = clause if clause.startswith("{v}") else capital(clause)
    text = opener + clause + _end(rng, clause, wordings)
    return _surround(rng, text, wordings)


def _end(rng: random.Random, clause: str, wordings: Wordings) -> str:
    chance = rng.random()
    if chance < 0.66:
        return "."
    if chance < 0.76:
        return "!"
    if chance < 0.91:
        return pick(rng, phrases("tail", wordings))
    said = chatter(rng, wordings)
    mark = pick(rng, (", and ", "; ", " - ", "\n", " and "))
    return mark + (said if mark == "\n" else _lower(said))


def _surround(rng: random.Random, text: str, wordings: Wordings) -> str:
    chance = rng.random()
    if chance < 0.22:
        return f"{text} {pick(rng, phrases('closer', wordings))}"
    if chance < 0.34:
        return f"{chatter(rng, wordings)} {text}"
    if chance < 0.44:
        return f"{text} {chatter(rng, wordings)}"
    if chance < 0.48:
        return f"{chatter(rng, wordings)}\n{text}"
    return text


def intro(rng: random.Random, who: str, wordings: Wordings) -> str:
    """A sentence that brings a person up, so that the next one may say "she"."""
    return pick(rng, phrases("intro", wordings)).replace("{o}", who)
