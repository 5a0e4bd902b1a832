"""Dialogues: what the model trains on, a memory of up to eight texts and the turns that use it.

In comes a seeded `random.Random` and a list of prose pieces; out comes a `Sample` of plain strings.
The replies are of one fixed style, so that what is learned is finding and copying, not phrasing.
Knows no tokenizer and no model: whoever trains turns ages into dates and texts into tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from memlong_agent.training.claims import Claim, draw_claim, quoted, tell, tell_clause
from memlong_agent.training.maker import (
    MAX_MEMORIES,
    MINUTES,
    NOTED,
    UNKNOWN,
    Maker,
    MemoryText,
    Sample,
    Turn,
    answer_turn,
    document,
    remembered,
    telling_turn,
)
from memlong_agent.training.phrases import capital, chatter, frame_tell, long_chatter, smalltalk
from memlong_agent.training.restate import CORRECTIONS, restated, sentence_of
from memlong_agent.training.templates import Wordings
from memlong_agent.training.words import Split, pick

__all__ = [
    "MAX_MEMORIES",
    "MIXTURE",
    "NOTED",
    "UNKNOWN",
    "MemoryText",
    "Sample",
    "Turn",
    "answer_turn",
    "make_sample",
]

# The mixture; the numbers are shares of all samples and sum to 1.
MIXTURE: tuple[tuple[str, float], ...] = (
    ("full", 0.12),  # eight memories, one right, one question
    ("mixed", 0.38),  # one to eight memories, one to four questions
    ("window", 0.14),  # told in this very conversation
    ("double", 0.05),  # two facts in one telling
    ("long", 0.05),  # the fact inside 80-100 words of chatter
    ("document", 0.04),  # the fact is a sentence of a document
    ("contradiction", 0.03),  # told twice, the newer one counts
    ("unknown", 0.06),  # nothing in memory answers
    ("plain", 0.07),  # telling and small talk only
    ("prose", 0.06),  # any sentence at all, told and asked for by its words
)

_PROSE_DRAWS = 50
_PROSE_WORDS = (5, 24)  # shortest and longest sentence that is told
_ABOUT = ("What did I say about {}?", "What was it about {}?", "Do you remember something on {}?",
          "Tell me again about {}.", "{}?", "Did I mention {}?")  # fmt: skip


def _full(make: Maker) -> Sample:
    target = make.claim()
    reverse = make.wants_reverse(target)
    memories = [make.right(target, reverse=reverse)]
    memories += [make.distractor(target) for _ in range(MAX_MEMORIES - 1)]
    return make.sample(memories, [make.question(target, reverse=reverse)])


def _mixed(make: Maker) -> Sample:
    rng = make.rng
    count = 1 + int(rng.random() * MAX_MEMORIES)
    asked = min(count, 1 + int(rng.random() * 4))
    targets = [make.claim()]
    for _ in range(asked - 1):
        near = draw_claim(rng, make.split, targets[0].subject)
        targets.append((make.admit(near) if rng.random() < 0.4 else None) or make.claim())
    reverse = [make.wants_reverse(target) for target in targets]
    pairs = list(zip(targets, reverse, strict=True))
    memories = [make.right(target, reverse=back) for target, back in pairs]
    memories += [make.distractor(pick(rng, targets)) for _ in range(count - asked)]
    turns = [make.question(target, reverse=back) for target, back in pairs]
    if rng.random() < 0.15:
        turns.insert(int(rng.random() * (asked + 1)), Turn(*smalltalk(rng, make.wordings), ""))
    return make.sample(memories, turns)


def _window(make: Maker) -> Sample:
    """The facts are told in the conversation; the memories, if any, are about other things."""
    rng = make.rng
    targets = [make.claim() for _ in range(1 + int(rng.random() * 3))]
    turns = [telling_turn(make.tell(target), target.value) for target in targets]
    if rng.random() < 0.4:
        turns.append(Turn(*smalltalk(rng, make.wordings), ""))
    if rng.random() < 0.3:
        turns.append(telling_turn(chatter(rng, make.wordings)))
    rng.shuffle(turns)
    count = int(rng.random() * (MAX_MEMORIES + 1)) if rng.random() < 0.6 else 0
    memories = [make.distractor(targets[0]) for _ in range(count)]
    asked = targets[: 1 + int(rng.random() * 2)]
    return make.sample(memories, turns + [make.question(target) for target in asked])


def _double(make: Maker) -> Sample:
    """One message tells two facts; one or both are asked."""
    rng = make.rng
    first = make.claim()
    same = draw_claim(rng, make.split, first.subject) if rng.random() < 0.5 else None
    second = make.admit(same) or make.claim()
    clause = tell_clause(rng, first, make.wordings)  # stays open: its first letter may be raised
    joint = pick(rng, (", and ", ". Also, ", "; ", ", while ", " and ", ".\nAnd "))
    other = tell_clause(rng, second, make.wordings).replace("{v}", second.value)
    told = frame_tell(rng, clause + joint + other, make.wordings).replace("{v}", first.value)
    for claim in (first, second):
        make.told(claim, restated(told, first.value, second.value))
    asked = [first, second] if rng.random() < 0.4 else [pick(rng, (first, second))]
    count = int(rng.random() * MAX_MEMORIES)
    memories = [remembered(rng, told, first.value, second.value)]
    memories += [make.distractor(asked[0]) for _ in range(count)]
    return make.sample(memories, [make.question(claim) for claim in asked])


def _long(make: Maker) -> Sample:
    """The fact stands somewhere in a long message."""
    rng, target = make.rng, make.claim()
    words = 80 + int(rng.random() * 20)
    before = int(rng.random() * words)
    head = long_chatter(rng, make.wordings, before)
    tail = long_chatter(rng, make.wordings, words - before)
    told = f"{head} {tell(rng, target, make.wordings)} {tail}".strip()
    make.told(target, restated(told, target.value))
    if rng.random() < 0.3:
        return make.sample([], [telling_turn(told, target.value), make.question(target)])
    memories = [remembered(rng, told, target.value)]
    memories += [make.distractor(target) for _ in range(int(rng.random() * MAX_MEMORIES))]
    return make.sample(memories, [make.question(target)])


def _document_text(make: Maker, claim: Claim) -> str:
    """The claim as a sentence among the sentences of a piece of prose, or alone."""
    rng = make.rng
    clause = tell_clause(rng, claim, make.wordings)
    clause = clause if clause.startswith("{v}") else capital(clause)
    sentence = clause.replace("{v}", quoted(rng, claim.value, clause)) + "."
    if not make.prose or rng.random() < 0.2:
        return sentence
    parts = pick(rng, make.prose).split(". ")
    at = int(rng.random() * (len(parts) + 1))
    head = "".join(f"{part}. " for part in parts[:at])
    return f"{head}{sentence} {'. '.join(parts[at:])}".replace("..", ".").strip()


def _from_document(make: Maker) -> Sample:
    target = make.claim("MMMGCTE")
    text = _document_text(make, target)
    make.told(target, sentence_of(text, target.value))
    memories = [document(text)]
    count = int(make.rng.random() * MAX_MEMORIES)
    memories += [make.distractor(target) for _ in range(count)]
    return make.sample(memories, [make.question(target)])


def _contradiction(make: Maker) -> Sample:
    """The same thing told twice with two values; the smaller age wins."""
    rng, new = make.rng, None
    while new is None:
        old = make.claim()
        new = make.rival(old)
    newer = 1 + int(rng.random() ** 2 * MINUTES / 2)
    older = newer + 60 + int(rng.random() * MINUTES / 2)
    said = tell(rng, new, make.wordings)
    if rng.random() < 0.4:
        said = f"{pick(rng, CORRECTIONS)} {said}"
    make.told(new, restated(said, new.value))
    before, now = tell(rng, old, make.wordings), said
    memories = [
        replace(remembered(rng, before, old.value), age_minutes=older),
        replace(remembered(rng, now, new.value), age_minutes=newer),
    ]
    count = int(rng.random() * (MAX_MEMORIES - 1))
    memories += [make.distractor(new) for _ in range(count)]
    return make.sample(memories, [make.question(new)])


def _unknown(make: Maker) -> Sample:
    """Nothing answers: there is no memory at all, or only memories that look like an answer."""
    rng, target = make.rng, make.claim()
    count = 0 if rng.random() < 0.2 else 1 + int(rng.random() * MAX_MEMORIES)
    memories = [make.distractor(target) for _ in range(count)]
    reverse = make.wants_reverse(target)
    make.told(target, "")
    turns = [Turn(make.question(target, reverse=reverse).user, UNKNOWN, "")]
    if rng.random() < 0.25 and count < MAX_MEMORIES:
        other = make.claim()
        memories.append(make.right(other))
        turns.insert(int(rng.random() * 2), make.question(other))
    return make.sample(memories, turns)


def _plain(make: Maker) -> Sample:
    """Telling, greeting and chatting only: what must not be answered from memory."""
    rng = make.rng
    turns = []
    for _ in range(1 + int(rng.random() * 3)):
        chance = rng.random()
        if chance < 0.5:
            claim = make.claim()
            turns.append(telling_turn(make.tell(claim), claim.value))
        elif chance < 0.85:
            turns.append(Turn(*smalltalk(rng, make.wordings), ""))
        else:
            turns.append(telling_turn(chatter(rng, make.wordings)))
    target = make.claim()
    count = int(rng.random() * (MAX_MEMORIES + 1))
    return make.sample([make.distractor(target) for _ in range(count)], turns)


def _prose(make: Maker) -> Sample:
    """Any sentence, in the window or remembered: copying must not depend on what is said."""
    rng = make.rng
    told = [telling_turn(one) for one in _sentences(make, 1 + int(rng.random() * 3))]
    asked = [answer_turn(_asked_by_words(rng, turn.user), turn.reply.removeprefix(NOTED), "")
             for turn in told[: 1 + int(rng.random() * len(told))]]  # fmt: skip
    if rng.random() < 0.5:
        return make.sample([], [*told, *asked])
    return make.sample([remembered(rng, turn.user) for turn in told], asked)


def _sentences(make: Maker, count: int) -> list[str]:
    """Different short sentences of prose, or of chatter when there is not enough prose."""
    found: dict[str, None] = {}
    for _ in range(_PROSE_DRAWS if make.prose else 0):
        for one in pick(make.rng, make.prose).split(". "):
            if _PROSE_WORDS[0] <= len(one.split()) <= _PROSE_WORDS[1]:
                found[f"{one.rstrip('.')}."] = None
                break
        if len(found) == count:
            break
    while len(found) < count:
        found[chatter(make.rng, make.wordings)] = None
    return list(found)


def _asked_by_words(rng: random.Random, sentence: str) -> str:
    """A question that names one or two of the longer words of a sentence."""
    parts = sorted(set(re.findall(r"[A-Za-z]{4,}", sentence)), key=lambda w: (-len(w), w))[:4]
    named = " and ".join(rng.sample(parts, min(len(parts), 1 + int(rng.random() * 2))))
    return pick(rng, _ABOUT).format(named or "that")


_MAKERS: dict[str, Callable[[Maker], Sample]] = {
    "full": _full, "mixed": _mixed, "window": _window, "double": _double, "long": _long,
    "document": _from_document, "contradiction": _contradiction, "unknown": _unknown,
    "plain": _plain, "prose": _prose,
}  # fmt: skip
_NAMES = tuple(name for name, _ in MIXTURE)
_CUMULATED = tuple(sum(share for _, share in MIXTURE[: at + 1]) for at in range(len(MIXTURE)))


def make_sample(
    rng: random.Random,
    *,
    split: Split = "train",
    wordings: Wordings = "train",
    prose: Sequence[str],
    name: str = "",
) -> Sample:
    """One sample of the mixture, or of the part of it called `name` (a key of `MIXTURE`).

    `prose` are the documents that serve as distractors; an empty list gives none. Every answer is
    a value of `split`. The same state of `rng` gives the same sample.
    """
    if not name:
        name = rng.choices(_NAMES, cum_weights=_CUMULATED)[0]
    return _MAKERS[name](Maker(rng, split, wordings, prose))
