"""Subjects: of whom or of what a fact speaks, as a noun phrase with its grammar.

In comes a seeded `random.Random`; out comes a `Subject`: the user, relations and relations of
relations, named people, groups, places, things, events. Names in them follow the value split.
Knows nothing of attributes and values.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from memlong_agent.training.values import city, company, person
from memlong_agent.training.words import (
    Split,
    first_name,
    invented_name,
    last_name,
    pick,
    split_value,
    words,
)

# kind -> how often it is drawn; the letters are those of attributes.txt
_KIND_POOL = (
    "P" * 42 + "I" * 13 + "L" * 5 + "A" * 4 + "G" * 8 + "C" * 7 + "T" * 13 + "E" * 5 + "M" * 3
)
_SHE = ("she", "her", "her")
_HE = ("he", "his", "him")
_IT = ("it", "its", "it")
_FEMALE = frozenset(words("female"))
_MALE = frozenset(words("male"))
_DETERMINERS = frozenset({"my", "our", "the"})


@dataclass(frozen=True, slots=True)
class Subject:
    """A noun phrase. `person`: 0 third person, 1 the user, 2 several people."""

    text: str
    kind: str
    person: int = 0
    pronoun: tuple[str, str, str] | None = None
    named: bool = False
    tokens: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        tokens = self.text.casefold().replace("'s", "").split()
        object.__setattr__(self, "tokens", frozenset(t for t in tokens if t not in _DETERMINERS))

    @property
    def key(self) -> str:
        """Canonical form: two subjects with one key mean the same."""
        words_ = self.text.casefold().split()
        return " ".join(words_[1:] if words_[0] in _DETERMINERS else words_)

    @property
    def possessive(self) -> str:
        if self.person == 1:
            return "my"
        return self.text + ("'" if self.person == 2 and self.text.endswith("s") else "'s")

    @property
    def object(self) -> str:
        return "me" if self.person == 1 else self.text


USER = Subject("I", "I", person=1)


def _name(rng: random.Random, split: Split) -> str:
    return split_value(rng, person, split)


def _relation(rng: random.Random) -> tuple[str, tuple[str, str, str]]:
    relation = pick(rng, words("relation"))
    last = relation.split()[-1]
    if last in _FEMALE:
        return f"my {relation}", _SHE
    return f"my {relation}", _HE if last in _MALE or rng.random() < 0.5 else _SHE


def _owner(rng: random.Random, split: Split) -> str:
    """A possessor: "my sister's" or "Danira's"; "my" and "our" are added by the callers."""
    if rng.random() < 0.6:
        return f"my {pick(rng, words('relation'))}'s"
    return f"{split_value(rng, first_name, split)}'s"


def _person(rng: random.Random, split: Split) -> Subject:
    chance = rng.random()
    either = _SHE if rng.random() < 0.5 else _HE
    if chance < 0.42:
        text, pronoun = _relation(rng)
        return Subject(text, "P", pronoun=pronoun)
    if chance < 0.58:
        return Subject(f"{_owner(rng, split)} {pick(rng, words('kin'))}", "P", pronoun=either)
    if chance < 0.86:
        return Subject(_name(rng, split), "P", pronoun=either, named=True)
    name = split_value(rng, first_name, split)
    if chance < 0.91:
        place = f"from {split_value(rng, invented_name, split)}"
        places = (place, "from work", "from the gym", "from school", "next door", "from the choir")
        return Subject(f"{name} {pick(rng, places)}", "P", pronoun=either, named=True)
    job = pick(rng, words("profession"))
    if chance < 0.95:
        text = f"the {job} from {split_value(rng, invented_name, split)}"
        return Subject(text, "P", pronoun=either)
    return Subject(f"{'our' if chance < 0.98 else 'the'} {job}", "P", pronoun=either)


def _people(rng: random.Random, split: Split) -> Subject:
    if rng.random() < 0.6:
        return Subject(pick(rng, words("plural")), "L", person=2)
    return Subject(f"the {split_value(rng, last_name, split)} family", "L")


def _animal(rng: random.Random, split: Split) -> Subject:
    animal, chance = pick(rng, words("petsubject")), rng.random()
    if chance < 0.6:
        return Subject(f"{_owner(rng, split)} {animal}", "A", pronoun=_IT)
    if chance < 0.8:
        return Subject(f"our {animal}", "A", pronoun=_IT)
    return Subject(f"our {pick(rng, ('old', 'young', 'new', 'second'))} {animal}", "A", pronoun=_IT)


def _group(rng: random.Random, split: Split) -> Subject:
    chance = rng.random()
    if chance < 0.3:
        text = f"our {pick(rng, words('group'))}"
    elif chance < 0.5:
        town = split_value(rng, city, split)
        text = f"the {pick(rng, words('group'))} in {town}"
    elif chance < 0.65:
        text = f"{_owner(rng, split)} {pick(rng, words('group'))}"
    elif chance < 0.85:
        text = f"{pick(rng, words('project'))} {split_value(rng, invented_name, split)}"
    else:
        text = split_value(rng, company, split)
    return Subject(text, "G")


def _place(rng: random.Random, split: Split) -> Subject:
    place, chance = pick(rng, words("placething")), rng.random()
    if chance < 0.3:
        text = f"the {place}"
    elif chance < 0.4:
        text = f"our {place}"
    elif chance < 0.65:
        text = f"the {place} in {split_value(rng, city, split)}"
    elif chance < 0.85:
        text = f"{_owner(rng, split)} {place}"
    else:
        text = f"the {pick(rng, words('adj'))} {place}"
    return Subject(text, "C", pronoun=_IT)


def _thing(rng: random.Random, split: Split) -> Subject:
    chance = rng.random()
    if chance < 0.15:
        text = f"my {pick(rng, words('thing'))}"
    elif chance < 0.3:
        text = f"my {pick(rng, words('adj'))} {pick(rng, words('thing'))}"
    elif chance < 0.5:
        text = f"the {pick(rng, words('adj'))} {pick(rng, words('object'))}"
    elif chance < 0.65:
        text = f"{_owner(rng, split)} {pick(rng, words('thing'))}"
    elif chance < 0.85:
        text = f"the {pick(rng, words('noun'))} {pick(rng, words('object'))}"
    else:
        text = f"the {pick(rng, words('noun'))} {pick(rng, words('noun'))}"
    return Subject(text, "T", pronoun=_IT)


def _event(rng: random.Random, split: Split) -> Subject:
    event, chance = pick(rng, words("event")), rng.random()
    if chance < 0.35:
        text = f"the {event}"
    elif chance < 0.5:
        text = f"my {event}"
    elif chance < 0.7:
        text = f"{_owner(rng, split)} {event}"
    elif chance < 0.85:
        text = f"the {event} with {_name(rng, split)}"
    else:
        text = f"the {event} in {split_value(rng, city, split)}"
    return Subject(text, "E", pronoun=_IT)


def _landmark(rng: random.Random, split: Split) -> Subject:
    town = split_value(rng, city, split)
    return Subject(f"the {pick(rng, words('landmark'))} of {town}", "M", pronoun=_IT)


_MAKERS = {"P": _person, "L": _people, "A": _animal, "G": _group, "C": _place, "T": _thing,
           "E": _event, "M": _landmark}  # fmt: skip


def make_subject(rng: random.Random, split: Split, kinds: str = "") -> Subject:
    """A subject of one of `kinds` (letters of attributes.txt; "" draws among all of them)."""
    kind = pick(rng, kinds or _KIND_POOL)
    return USER if kind == "I" else _MAKERS[kind](rng, split)


def near_subject(rng: random.Random, subject: Subject, split: Split) -> Subject:
    """Another subject of the same kind that shares words with `subject` where it can."""
    parts = subject.text.split()
    if subject.kind == "P" and not subject.named and subject.text.startswith("my "):
        kin = pick(rng, words("kin"))
        owner = f"{parts[0]} {parts[1]}" if parts[1].endswith("'s") else f"{subject.text}'s"
        return Subject(f"{owner} {kin}", "P")
    if subject.named and len(parts) == 2 and rng.random() < 0.5:
        other = split_value(rng, lambda r: f"{parts[0]} {last_name(r)}", split)
        return Subject(other, "P", named=True) if other else subject
    if subject.kind == "T" and len(parts) > 2:
        parts[1 if rng.random() < 0.5 else -1] = pick(rng, words("noun"))
        return Subject(" ".join(parts), "T")
    return make_subject(rng, split, subject.kind)
