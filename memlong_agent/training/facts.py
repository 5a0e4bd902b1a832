"""Facts: told, asked and answered, invented without end and never ambiguous.

In comes a number of facts and a seed; out come `Fact` objects for the dev and test evaluation and
for demonstrations, and the two functions that decide whether a reply is right.
Knows nothing of models; training dialogues are made in `dialogues.py` from the same claims.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from memlong_agent.errors import ConfigError
from memlong_agent.training.claims import Claim, Scope, ask, ask_reverse, draw_claim, tell
from memlong_agent.training.restate import restated
from memlong_agent.training.subjects import make_subject
from memlong_agent.training.templates import Wordings, reversible
from memlong_agent.training.words import Split, pick

_REVERSE_SHARE = 0.08
_LONGEST_ANSWER = 8  # words; grams of the tells are kept up to this length
_DRAWS_PER_FACT = 200
_PUNCTUATION = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact of one user: the message that tells it, the question, the answer verbatim, its key.

    `key` is "subject|attribute", unique within a user.
    """

    user: str
    tell: str
    ask: str
    answer: str
    key: str

    @property
    def restated(self) -> str:
        """The tell as memlong-tiny says it back."""
        return restated(self.tell, self.answer)


def normalize(text: str) -> str:
    """`text` casefolded, with every run of punctuation and white space as one space."""
    return _PUNCTUATION.sub(" ", text.casefold()).strip()


def is_exact(reply: str, answer: str, others: Iterable[str]) -> bool:
    """Whether `reply` holds `answer` as whole words and none of `others`, the run's other answers.

    An entry of `others` that normalizes to the answer itself is passed over.
    """
    said, wanted = f" {normalize(reply)} ", normalize(answer)
    if not wanted or f" {wanted} " not in said:
        return False
    return not any(
        f" {other} " in said for other in map(normalize, others) if other and other != wanted
    )


def _grams(text: str) -> set[str]:
    parts = normalize(text).split()
    return {
        " ".join(parts[start:end])
        for start in range(len(parts))
        for end in range(start + 1, min(start + _LONGEST_ANSWER, len(parts)) + 1)
    }


class _Run:
    """The facts so far; admits one whose answer no other tell or answer contains."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._answers: set[str] = set()

    def add(self, fact: Fact) -> bool:
        answer, grams = normalize(fact.answer), _grams(fact.tell)
        if not answer or answer in self._told or answer not in grams or answer in _grams(fact.ask):
            return False
        if not self._answers.isdisjoint(grams):
            return False
        self._answers.add(answer)
        self._told |= grams
        return True


def _word_fact(rng: random.Random, claim: Claim, user: str, reverse: bool, w: Wordings) -> Fact:
    told = tell(rng, claim, w, keep_case=reverse)
    if reverse:
        question, answer = ask_reverse(rng, claim, w), claim.subject.text
    else:
        question, answer = ask(rng, claim, w), claim.value
    return Fact(user, told, question, answer, claim.key)


def _draw(rng: random.Random, split: Split, reverse: bool) -> Claim | None:
    if not reverse:
        return draw_claim(rng, split)
    subject = make_subject(rng, split, "P")
    # Only a name can be an answer that no other tell contains.
    return draw_claim(rng, split, subject, pick(rng, reversible("P"))) if subject.named else None


def make_facts(
    n: int,
    seed: int,
    split: Split = "test",
    users: int = 1,
    wordings: Wordings = "train",
) -> list[Fact]:
    """`n` facts, spread over `users` users in turn; the same arguments give the same facts.

    Within a user no question has two answers. Over the whole run no answer is contained, as whole
    words, in another answer or in another fact's tell; it is in its own tell and not in its ask.
    Raises `ConfigError` when `n` or `users` is not positive, or when the words run out.
    """
    if n < 1 or users < 1:
        raise ConfigError(f"make_facts got n={n}, users={users}: both must be at least 1.")
    rng, run = random.Random(seed), _Run()
    scopes = [Scope() for _ in range(users)]
    facts: list[Fact] = []
    for _ in range(n * _DRAWS_PER_FACT):
        reverse = rng.random() < _REVERSE_SHARE
        claim, scope = _draw(rng, split, reverse), scopes[len(facts) % users]
        if claim is None or not scope.admits(claim, strict=True):
            continue
        fact = _word_fact(rng, claim, f"user-{len(facts) % users + 1}", reverse, wordings)
        if run.add(fact):
            scope.add(claim)
            facts.append(fact)
        if len(facts) == n:
            return facts
    raise ConfigError(f"Only {len(facts)} of {n} unambiguous facts could be made: ask for fewer.")
