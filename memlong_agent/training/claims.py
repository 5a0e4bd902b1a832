"""Claims: a subject, an attribute and a value, and how they are told and asked.

In comes a seeded `random.Random`, a split and a set of wordings; out come `Claim` objects and the
messages that tell or ask them. `Scope` refuses claims that would make a question ambiguous.
Knows nothing of memories, dialogues or runs.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from memlong_agent.training.phrases import capital, frame_question, frame_tell, intro
from memlong_agent.training.subjects import Subject, make_subject
from memlong_agent.training.templates import Attribute, Wordings, attributes_of, same_group
from memlong_agent.training.values import SLOT, make_value
from memlong_agent.training.words import Split, article, pick, words

_ARTICLE = re.compile(r"\ba (?=(\w+))")
_VALUE_ARTICLE = re.compile(r"\ba \{v\}|\{av\}")
_ODD_VALUE_SHARE = 0.12
_PRONOUN_SHARE = 0.08  # of tells about people: "I saw my sister. Her ..."


@dataclass(frozen=True, slots=True)
class Claim:
    """One fact before it has words. `group` is what makes two questions the same question."""

    subject: Subject
    attribute: Attribute
    slots: tuple[str, ...]
    value: str
    group: str

    @property
    def key(self) -> str:
        return f"{self.subject.key}|{self.group}"


def draw_claim(
    rng: random.Random,
    split: Split,
    subject: Subject | None = None,
    attribute: Attribute | None = None,
    slots: tuple[str, ...] = (),
) -> Claim | None:
    """A claim with the given parts; the others are drawn. `None` when the split has no value."""
    if subject is None:
        subject = make_subject(rng, split, attribute.kinds if attribute else "")
    attribute = attribute or pick(rng, attributes_of(subject.kind))
    slots = slots or tuple(pick(rng, words(slot)) for slot in attribute.slots)
    kind = attribute.value_kind
    if kind == SLOT:
        kind = slots[0].partition(":")[2]
        # One in eight says anything at all: the value is found by its place, not by its look.
        kind = "any" if rng.random() < _ODD_VALUE_SHARE else kind
    value = make_value(rng, kind, split)
    if not value or not subject.text:
        return None
    group = same_group(_fill_slots(attribute.group, attribute, slots))
    return Claim(subject, attribute, slots, value, group)


def _fill_slots(text: str, attribute: Attribute, slots: tuple[str, ...]) -> str:
    for name, word in zip(attribute.slots, slots, strict=True):
        if name == "verb":
            third, _, base = word.partition("/")
            text = text.replace("{verb0}", base).replace("{verb1}", third)
        else:
            text = text.replace(f"{{{name}}}", word.partition(":")[0])
    return text


def _fill(text: str, claim: Claim, names: tuple[str, str, str]) -> str:
    """Everything but the value: subject forms, slots, "a" or "an"."""
    nominative, possessive, objective = names
    if claim.slots:
        text = _fill_slots(text, claim.attribute, claim.slots)
    text = text.replace("{s'}", possessive).replace("{s}", nominative).replace("{o}", objective)
    text = _ARTICLE.sub(lambda match: f"{article(match.group(1))} ", text)
    return _VALUE_ARTICLE.sub(f"{article(claim.value)} {{v}}", text)


def _names(subject: Subject) -> tuple[str, str, str]:
    return subject.text, subject.possessive, subject.object


def tell_clause(rng: random.Random, claim: Claim, wordings: Wordings) -> str:
    """The claim as a clause with an open `{v}`, lower case, no full stop."""
    form = pick(rng, claim.attribute.forms(wordings, claim.subject.person).tells)
    return _fill(form, claim, _names(claim.subject))


def tell(rng: random.Random, claim: Claim, wordings: Wordings, *, keep_case: bool = False) -> str:
    """The claim as a user's message; the value stands in it verbatim.

    With `keep_case` the subject stands in it verbatim too: the answer of a reverse question.
    """
    pronoun = claim.subject.pronoun
    if pronoun and claim.subject.kind == "P" and not keep_case and rng.random() < _PRONOUN_SHARE:
        text = _tell_with_pronoun(rng, claim, pronoun, wordings)
    else:
        text = frame_tell(rng, tell_clause(rng, claim, wordings), wordings, keep_case=keep_case)
    return text.replace("{v}", quoted(rng, claim.value, text))


def quoted(rng: random.Random, value: str, text: str) -> str:
    """The value, in quotes one time in twenty when `text` has none around it already."""
    return f'"{value}"' if rng.random() < 0.05 and '"' not in text else value


def _tell_with_pronoun(
    rng: random.Random, claim: Claim, pronoun: tuple[str, str, str], wordings: Wordings
) -> str:
    form = pick(rng, claim.attribute.forms(wordings, 0).tells)
    clause = _fill(form, claim, pronoun)
    clause = clause if clause.startswith("{v}") else capital(clause)
    return f"{intro(rng, claim.subject.object, wordings)} {clause}."


def ask(rng: random.Random, claim: Claim, wordings: Wordings) -> str:
    """A question whose answer is the value of the claim."""
    form = pick(rng, claim.attribute.forms(wordings, claim.subject.person).asks)
    filled = type(form)(form.form, _fill(form.text, claim, _names(claim.subject)))
    return frame_question(rng, filled, wordings)


def ask_reverse(rng: random.Random, claim: Claim, wordings: Wordings) -> str:
    """A question whose answer is the subject of the claim; its attribute must be reversible."""
    form = pick(rng, claim.attribute.forms(wordings, 0).reverse)
    filled = _fill(form.text, claim, _names(claim.subject)).replace("{v}", claim.value)
    question = frame_question(rng, type(form)(form.form, filled), wordings)
    # A hurried question is lower-cased as a whole, and the value would no longer be verbatim.
    return question if claim.value in question else capital(filled)


class Scope:
    """The claims of one user: knows which further claim would make a question ambiguous."""

    def __init__(self) -> None:
        self._by_group: dict[str, list[Claim]] = {}

    def admits(self, claim: Claim, *, strict: bool = False) -> bool:
        """Whether no question about `claim` can be answered by a claim already added.

        With `strict`, neither may one subject's words contain the other's within a group.
        """
        for other in self._by_group.get(claim.group, ()):
            if other.value.casefold() == claim.value.casefold():
                return False
            mine, theirs = claim.subject.tokens, other.subject.tokens
            if mine == theirs:
                return False
            vague = strict or claim.subject.kind in "TCGEAM"
            if vague and (mine <= theirs or theirs <= mine):
                return False
        return True

    def add(self, claim: Claim) -> None:
        self._by_group.setdefault(claim.group, []).append(claim)
