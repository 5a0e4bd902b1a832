"""The maker of samples: memories, turns, and distractors that are easily taken for the answer.

In comes a seeded `random.Random` and a list of prose pieces; out come the parts of one sample.
Knows nothing of the mixture: which parts make a dialogue is decided in `dialogues.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from memlong_agent.training.claims import Claim, Scope, ask, ask_reverse, draw_claim, tell
from memlong_agent.training.phrases import chatter, smalltalk
from memlong_agent.training.restate import restated, second_person
from memlong_agent.training.subjects import make_subject, near_subject
from memlong_agent.training.templates import Wordings, attributes_of, attributes_with
from memlong_agent.training.words import Split, pick

NOTED, TOLD = "Noted: ", "You told me: "  # a restated telling follows
UNKNOWN = "I don't know."
MAX_MEMORIES = 8

_REVERSE_SHARE = 0.10  # of the questions whose attribute has a reverse form
_OTHER_REPLIES = ("Noted.", "", "Okay.", "Got it!", "I see.")  # by other models, or by nobody
_OTHER_REPLY_SHARE = 0.2
_REPEATED_SHARE = 0.06  # of the right memories: an earlier question with its answer, no telling
MINUTES = 60 * 24 * 400  # memories are up to about a year old

Kind = Literal["exchange", "document"]


@dataclass(frozen=True, slots=True)
class MemoryText:
    """One remembered text. An exchange has `user` and `reply` (may be ""), a document `text`.

    `age_minutes` is how long ago it was written; within a sample all ages differ. `log_prior` is
    what :func:`memlong_agent.memory.log_priors` makes of a retriever's cosine.
    """

    kind: Kind
    user: str
    reply: str
    text: str
    age_minutes: int
    log_prior: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn; `answer` is the value in `reply` that was asked, or told; "" when none counts."""

    user: str
    reply: str
    answer: str


@dataclass(frozen=True, slots=True)
class Sample:
    """Memories in random order (at most eight) and the turns of one conversation."""

    memories: tuple[MemoryText, ...]
    turns: tuple[Turn, ...]


def exchange(user: str, reply: str) -> MemoryText:
    return MemoryText("exchange", user, reply, "", 0)


def document(text: str) -> MemoryText:
    return MemoryText("document", "", "", text, 0)


def telling_turn(told: str, *values: str) -> Turn:
    """A message that tells something, and its restatement."""
    return Turn(told, NOTED + restated(told, *values), "")


def remembered(rng: random.Random, told: str, *values: str) -> MemoryText:
    """A telling as an exchange of the past, mostly with this model's own reply."""
    reply = telling_turn(told, *values).reply
    if rng.random() < _OTHER_REPLY_SHARE:
        reply = pick(rng, _OTHER_REPLIES)
    return exchange(told, reply)


def answer_turn(question: str, restatement: str, answer: str) -> Turn:
    return Turn(question, TOLD + restatement, answer)


class Maker:
    """Draws the parts of one sample; its scope keeps every question of the sample unambiguous."""

    def __init__(
        self, rng: random.Random, split: Split, wordings: Wordings, prose: Sequence[str]
    ) -> None:
        self.rng, self.split, self.wordings, self.prose = rng, split, wordings, prose
        self._scope = Scope()
        self._values: set[str] = set()
        self._restated: dict[str, str] = {}  # by value, as it was told in this sample

    def admit(self, claim: Claim | None) -> Claim | None:
        """The claim, now part of the sample, or `None` when it cannot be."""
        if claim is None or claim.value.casefold() in self._values or not self._scope.admits(claim):
            return None
        self._scope.add(claim)
        self._values.add(claim.value.casefold())
        return claim

    def claim(self, kinds: str = "") -> Claim:
        while True:
            subject = make_subject(self.rng, self.split, kinds) if kinds else None
            claim = self.admit(draw_claim(self.rng, self.split, subject))
            if claim is not None:
                return claim

    def rival(self, claim: Claim) -> Claim | None:
        """The same claim with another value, or `None` when the split has no other."""
        other = draw_claim(self.rng, self.split, claim.subject, claim.attribute, claim.slots)
        if other is None or other.value.casefold() in self._values:
            return None
        self._values.add(other.value.casefold())
        return other

    def question(self, claim: Claim, *, reverse: bool = False) -> Turn:
        """A question about a claim that was told, answered by what was said of it."""
        said = self._restated[claim.value]
        if reverse:
            subject = second_person(claim.subject.text)
            return answer_turn(ask_reverse(self.rng, claim, self.wordings), said, subject)
        return answer_turn(ask(self.rng, claim, self.wordings), said, claim.value)

    def wants_reverse(self, claim: Claim) -> bool:
        """Whether to ask this claim the other way round, which not every attribute allows."""
        return (
            self.rng.random() < _REVERSE_SHARE
            and claim.subject.person == 0
            and bool(claim.attribute.every[0].reverse)
        )

    def tell(self, claim: Claim, *, keep_case: bool = False) -> str:
        """The claim as a message; a later question will be answered in its words."""
        told = tell(self.rng, claim, self.wordings, keep_case=keep_case)
        self.told(claim, restated(told, claim.value))
        return told

    def told(self, claim: Claim, restatement: str) -> None:
        """What questions about `claim` are answered with."""
        self._restated[claim.value] = restatement

    def telling(self, claim: Claim, *, keep_case: bool = False) -> MemoryText:
        return remembered(self.rng, self.tell(claim, keep_case=keep_case), claim.value)

    def _hard_draw(self, target: Claim) -> Claim | None:
        """A claim that is easily taken for `target`."""
        rng, chance, attribute = self.rng, self.rng.random(), target.attribute
        kind = target.subject.kind
        if chance < 0.28:
            return draw_claim(rng, self.split, target.subject)
        if chance < 0.56:
            return draw_claim(rng, self.split, None, attribute, target.slots)
        if chance < 0.68:
            near = near_subject(rng, target.subject, self.split)
            return draw_claim(rng, self.split, near, attribute, target.slots)
        if chance < 0.76:
            near = near_subject(rng, target.subject, self.split)
            return draw_claim(rng, self.split, near)
        if chance < 0.88:
            return draw_claim(
                rng, self.split, None, pick(rng, attributes_with(kind, attribute.value_kind))
            )
        return draw_claim(rng, self.split, target.subject, pick(rng, attributes_of(kind)))

    def distractor(self, target: Claim) -> MemoryText:
        """A memory that does not answer the question about `target`."""
        rng, chance = self.rng, self.rng.random()
        if chance < 0.10 and self.prose:
            return document(pick(rng, self.prose))
        if chance < 0.13:
            return exchange(*smalltalk(rng, self.wordings))
        if chance < 0.15:
            return remembered(rng, chatter(rng, self.wordings))
        if chance < 0.22:
            return self.unanswered(target)
        hard = self._hard_draw(target) if chance < 0.82 else draw_claim(rng, self.split)
        claim = self.admit(hard) or self.claim()
        if chance > 0.97:
            return self.answered(claim)
        return self.telling(claim)

    def unanswered(self, target: Claim) -> MemoryText:
        """The question itself, asked before anything was told: its words, not its answer."""
        reply = UNKNOWN if self.rng.random() < 0.6 else ""  # banks keep no reply that abstained
        return exchange(ask(self.rng, target, self.wordings), reply)

    def answered(self, claim: Claim) -> MemoryText:
        self.tell(claim)
        turn = self.question(claim)
        return exchange(turn.user, turn.reply)

    def right(self, claim: Claim, *, reverse: bool = False) -> MemoryText:
        """The memory that answers: nearly always the telling itself."""
        if not reverse and self.rng.random() < _REPEATED_SHARE:
            return self.answered(claim)
        return self.telling(claim, keep_case=reverse)

    def sample(self, memories: list[MemoryText], turns: list[Turn]) -> Sample:
        """Shuffled, with different ages for memories that have none yet."""
        self.rng.shuffle(memories)
        taken = {memory.age_minutes for memory in memories}
        dated = []
        for memory in memories:
            age = memory.age_minutes
            while age == 0 or (memory.age_minutes == 0 and age in taken):
                # Squared: recent memories are common, old ones are not rare.
                age = 1 + int(self.rng.random() ** 2 * MINUTES)
            taken.add(age)
            dated.append(MemoryText(memory.kind, memory.user, memory.reply, memory.text, age))
        return Sample(tuple(dated), tuple(turns))
