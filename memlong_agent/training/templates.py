"""Templates: the attributes of `attributes.txt`, read once and indexed.

In comes the text file; out come `Attribute` objects with their tells, questions and reverse
questions, one list for each grammatical person and for each set of wordings.
Knows neither subjects nor values: the holes `{s}`, `{s'}`, `{o}` and `{v}` stay open here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import xxhash

from memlong_agent.training.values import KINDS

Wordings = Literal["train", "held_out", "any"]
AskForm = Literal["np", "who", "clause", "question"]

# Several attributes answer the same question of a subject; one run must hold only one of them.
_SAME_GROUP = {
    "address": "location",
    "storage place": "place",
    "hiding place": "place",
    "start date": "etime",
    "opening time": "opens",
    "closing time": "closes",
    "value": "price",
    "want": "gift",
    "nearest town": "location",
    "filling": "contents",
    "holiday spot": "vacation",
    "meeting day": "gmeets",
    "badge number": "badge",
    "designer": "maker",
    "supervisor": "boss",
    "gate code": "code",
    "door code": "code",
    "PIN": "code",
    "user name": "handle",
    "gaming name": "handle",
    "forum name": "handle",
    "meeting place": "meetingplace",
    "landline": "phone",
    "door color": "roomcolor",
    "founder": "builder",
    "architect": "builder",
    "contact person": "contact",
    "garden plant": "garden",
    "wedding date": "wedding anniversary",
    "old school": "school",
    "blog": "site",
    "homepage": "site",
    "train station": "station",
    "opponent": "rival",
    "director": "boss",
}
_HELD_OUT_SHARE = 8  # one wording in eight is kept out of training
_PERSONS = 3  # third person, first person, plural
_VERB = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([a-z]+)[01]?\}")
_HOLES = frozenset({"s", "o", "v", "av"})


@dataclass(frozen=True, slots=True)
class Ask:
    """A question: a noun phrase ("np"; "who" for a person), a clause, or its own words."""

    form: AskForm
    text: str


@dataclass(frozen=True, slots=True)
class Forms:
    """The wordings of one attribute for one grammatical person."""

    tells: tuple[str, ...]
    asks: tuple[Ask, ...]
    reverse: tuple[Ask, ...]


@dataclass(frozen=True, slots=True)
class Attribute:
    """What can be said of a subject. `slots` are the sections of words.txt that fill its holes."""

    name: str
    group: str
    kinds: str
    value_kind: str
    slots: tuple[str, ...]
    train: tuple[Forms, ...]
    held_out: tuple[Forms, ...]
    every: tuple[Forms, ...]

    def forms(self, wordings: Wordings, person: int) -> Forms:
        """The forms of a set of wordings; a held-out set that is empty falls back to all."""
        if wordings == "train":
            return self.train[person]
        return self.held_out[person] if wordings == "held_out" else self.every[person]


def same_group(group: str) -> str:
    """The name that stands for all groups whose questions mean the same."""
    return _SAME_GROUP.get(group, group)


def _conjugate(text: str, person: int) -> str:
    def choose(match: re.Match[str]) -> str:
        parts = match.group(1).split("|")
        if person < len(parts):
            return parts[person]
        return "are" if parts[-1] == "am" else parts[-1]

    return _VERB.sub(choose, text)


def _ask(text: str, names_person: bool) -> Ask:
    if text[0] == "=":
        return Ask("who" if names_person and "name" not in text else "np", text[1:])
    return Ask("clause", text[1:]) if text[0] == "~" else Ask("question", text)


def _is_held_out(text: str) -> bool:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8")) % _HELD_OUT_SHARE == 0


def _select(texts: list[str], wordings: Wordings) -> list[str]:
    if wordings == "any":
        return texts
    chosen = [text for text in texts if _is_held_out(text) == (wordings == "held_out")]
    # Training keeps at least one form of everything; what it keeps is no held-out wording then.
    return chosen or texts


def _of_user(texts: list[str]) -> list[str]:
    """The texts that sound right when the user is the subject: not "the age of me"."""
    good = [text for text in texts if not re.search(r"(?<!hold )\bof \{o\}", text)]
    asked = [text for text in good if not (text[-1] == "?" or text[0] in "=~") or "{o}" not in text]
    return asked or good or texts


def _forms(
    tells: list[str], asks: list[str], reverse: list[str], wordings: Wordings, names_person: bool
) -> tuple[Forms, ...]:
    result = []
    for person in range(_PERSONS):
        fitting = [_of_user(texts) if person == 1 else texts for texts in (tells, asks, reverse)]
        told, asked, reversed_ = (
            [_conjugate(text, person) for text in _select(texts, wordings)] for texts in fitting
        )
        result.append(
            Forms(
                tuple(told),
                tuple(_ask(text, names_person) for text in asked),
                tuple(_ask(text, False) for text in reversed_),
            )
        )
    return tuple(result)


def _parse(line: str) -> Attribute:
    parts = [part.strip() for part in line.split(" @ ")]
    names, kinds, value_kind, told, asked = parts[:5]
    name, _, group = names.partition("#")
    tells, asks = told.split(" / "), asked.split(" / ")
    reverse = parts[5].split(" / ") if len(parts) > 5 else []
    if value_kind not in KINDS:
        raise KeyError(
            f"attributes.txt names the unknown value kind {value_kind!r}: add it to KINDS"
        )
    found = _SLOT.findall(f"{names} {told} {asked}")
    person = value_kind in ("full", "name")
    slots = tuple(dict.fromkeys(slot for slot in found if slot not in _HOLES))
    sets: tuple[Wordings, ...] = ("train", "held_out", "any")
    train, held_out, every = (_forms(tells, asks, reverse, one, person) for one in sets)
    group = same_group(group or name)
    return Attribute(name, group, kinds, value_kind, slots, train, held_out, every)


def _expand(line: str) -> Iterable[str]:
    """A line with `<name:kind name:kind>` stands for one attribute of each name."""
    if not line.startswith(("<", "favorite <", "most hated <")):
        yield line
        return
    start, _, rest = line.partition("<")
    inside, _, tail = rest.partition(">")
    for name, kind in re.findall(r"([^:]+):(\w+) ?", inside):
        head, *others = tail.split(" @ ")
        others[1] = kind
        head = head.replace("#X", f"#{name}")
        yield " @ ".join([f"{start}{name}{head}", *others]).replace("<>", name)


@cache
def attributes() -> tuple[Attribute, ...]:
    """All attributes, in the order of the file."""
    text = files("memlong_agent.training").joinpath("attributes.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return tuple(_parse(one) for line in lines for one in _expand(line))


@cache
def attributes_of(kind: str) -> tuple[Attribute, ...]:
    """The attributes that a subject of `kind` can have; those with open words count three times."""
    return tuple(
        attribute
        for attribute in attributes()
        if kind in attribute.kinds
        for _ in range(6 if attribute.slots else 1)
    )


@cache
def attributes_with(kind: str, value_kind: str) -> tuple[Attribute, ...]:
    """The attributes of a subject of `kind` whose values look alike."""
    return tuple(one for one in attributes_of(kind) if one.value_kind == value_kind)


@cache
def reversible(kind: str) -> tuple[Attribute, ...]:
    """The attributes of `kind` that have a reverse question ("Who lives in Tarn?")."""
    return tuple(one for one in attributes_of(kind) if one.every[0].reverse)
