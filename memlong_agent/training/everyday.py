"""Everyday tellings: dialogues from natural sentences whose question shares few of their words.

In comes a seeded `random.Random` and a split; out comes a `Sample` whose answers are values of that
split. The sentences stand in `everyday.txt`, one a line: the kind of the value, a tab, the telling
with `{v}`, a tab, and the questions, joined by " || ". Slots (`SLOTS`) are filled at random, alike
in the telling and the question. Knows nothing of claims, attributes or the mixture.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from memlong_agent.training.maker import (
    MINUTES,
    UNKNOWN,
    MemoryText,
    Sample,
    Turn,
    answer_turn,
    remembered,
    telling_turn,
)
from memlong_agent.training.restate import restated
from memlong_agent.training.templates import Wordings
from memlong_agent.training.values import city, make_value
from memlong_agent.training.words import Split, article, first_name, pick, words

UNKNOWN_SHARE = 0.06  # of the samples: one question that nothing in memory answers
HELD_OUT_EVERY = 12  # every twelfth line is kept out of training
WINDOW_SHARE = 0.4  # of the samples: some things are told in this very conversation
_HURRIED_SHARE = 0.07  # of the messages: a lower-case beginning; a question loses its mark
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September",
           "October", "November", "December")  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SLOTS: dict[str, Callable[[random.Random], str]] = {
    "name": first_name,
    "name2": first_name,
    "rel": lambda rng: pick(rng, words("relation")),
    "pet": lambda rng: pick(rng, words("pet")),
    "city": city,
    "month": lambda rng: pick(rng, _MONTHS),
    "day": lambda rng: pick(rng, _DAYS),
    "thing": lambda rng: pick(rng, words("thing")),
    "room": lambda rng: pick(rng, words("roomword")),
}
_SLOT = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\b([Aa]) \{v\}")


@dataclass(frozen=True, slots=True)
class Everyday:
    """One telling and its questions, with open slots; `slots` are all but `{v}`."""

    kind: str
    tell: str
    asks: tuple[str, ...]
    slots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Telling:
    """A sentence, a question about it and the value that answers it."""

    tell: str
    ask: str
    value: str


@cache
def everyday() -> tuple[Everyday, ...]:
    """The parsed lines of `everyday.txt`; raises `ValueError` for a line without three fields."""
    text = files("memlong_agent.training").joinpath("everyday.txt").read_text("utf-8")
    found = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        kind, tell, asks = line.split("\t")
        slots = tuple(dict.fromkeys(name for name in _SLOT.findall(tell + asks) if name != "v"))
        found.append(Everyday(kind, tell, tuple(asks.split(" || ")), slots))
    return tuple(found)


def _hurried(text: str) -> str:
    """As typed in haste; "I" and what begins with a value or a digit stay as they are."""
    hurried = text[:1].islower() or text[:2] in ("I ", "I'") or text.startswith("{v}")
    return text if hurried else text[:1].lower() + text[1:]


def _told(rng: random.Random, template: Everyday, split: Split) -> Telling | None:
    """The template with a value and its slots filled; `None` when the question gives it away."""
    value = make_value(rng, template.kind, split)
    if not value:
        return None
    tell, ask = template.tell, pick(rng, template.asks)
    if rng.random() < _HURRIED_SHARE:
        tell = _hurried(tell)
    if rng.random() < _HURRIED_SHARE:
        ask = _hurried(ask).rstrip("?")
    used: set[str] = set()
    for slot in template.slots:
        filler = SLOTS[slot](rng)
        if filler in used:
            return None
        used.add(filler)
        tell, ask = tell.replace(f"{{{slot}}}", filler), ask.replace(f"{{{slot}}}", filler)
    folded = value.casefold()
    if folded in ask.casefold() or any(folded in word.casefold() for word in used):
        return None
    if " {v}" in tell:
        noun = article(value)
        tell = _ARTICLE.sub(lambda m: f"{m[1]}{noun[1:]} {{v}}", tell)
    return Telling(tell.replace("{v}", value), ask, value)


@cache
def _lines(wordings: Wordings) -> tuple[Everyday, ...]:
    """The lines of a set of wordings."""
    return tuple(
        line
        for at, line in enumerate(everyday())
        if wordings == "any" or (at % HELD_OUT_EVERY == 0) == (wordings == "held_out")
    )


def tellings(rng: random.Random, split: Split, count: int, wordings: Wordings) -> list[Telling]:
    """`count` tellings of different templates, with different values."""
    lines = _lines(wordings)
    drawn: list[Telling] = []
    taken: set[int] = set()
    values: set[str] = set()
    while len(drawn) < count:
        at = int(rng.random() * len(lines))
        told = None if at in taken else _told(rng, lines[at], split)
        if told is not None and told.value.casefold() not in values:
            taken.add(at)
            values.add(told.value.casefold())
            drawn.append(told)
    return drawn


def everyday_sample(
    rng: random.Random, *, split: Split, wordings: Wordings = "train", most: int = 8
) -> Sample:
    """A sample of 1 to `most` tellings and one to three questions about them.

    A fifth of the samples have exactly `most` tellings and one question. With `UNKNOWN_SHARE` the
    first question is about something that was not told; with `WINDOW_SHARE` up to three tellings
    are turns of this conversation, the others memories. The same state of `rng` gives the same
    sample; `most` must be far below the number of lines of `everyday.txt`.
    """
    if rng.random() < 0.2:
        count, asked = most, 1
    else:
        count = 1 + int(rng.random() * most)
        asked = min(count, 1 + int(rng.random() * 3))
    unknown = rng.random() < UNKNOWN_SHARE
    drawn = tellings(rng, split, count + unknown, wordings)
    turns = [
        answer_turn(told.ask, restated(told.tell, told.value), told.value) for told in drawn[:asked]
    ]
    if unknown:
        turns[0] = Turn(drawn.pop().ask, UNKNOWN, "")
    told_now: list[Turn] = []
    if rng.random() < WINDOW_SHARE:
        now = 1 + int(rng.random() * min(3, count))
        told_now = [telling_turn(told.tell, told.value) for told in drawn[:now]]
        drawn, count = drawn[now:], count - now
    rng.shuffle(told_now)
    return Sample(_dated(rng, drawn, count), (*told_now, *turns))


def _dated(rng: random.Random, drawn: list[Telling], count: int) -> tuple[MemoryText, ...]:
    """The tellings as memories of different ages, in random order."""
    ages: set[int] = set()
    while len(ages) < count:
        ages.add(1 + int(rng.random() ** 2 * MINUTES))
    dated = sorted(ages)
    rng.shuffle(dated)
    rng.shuffle(drawn)
    return tuple(
        replace(remembered(rng, told.tell, told.value), age_minutes=age)
        for told, age in zip(drawn, dated, strict=True)
    )
