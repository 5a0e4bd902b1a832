"""Dialogues: reproducible, well-formed, and answerable exactly when they claim to be."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from memlong_agent.training.dialogues import (
    MAX_MEMORIES,
    MIXTURE,
    NOTED,
    UNKNOWN,
    MemoryText,
    Sample,
    make_sample,
)
from memlong_agent.training.maker import TOLD
from memlong_agent.training.prose import prose_chunks
from memlong_agent.training.restate import restated
from memlong_agent.training.words import value_split

_PROSE = (
    "Return a copy of the string with leading and trailing characters removed. The order is kept.",
    "The method closes the file and returns nothing. Calling it twice has no effect at all.",
)
_NAMES = [name for name, _ in MIXTURE]


def _samples(name: str, count: int = 300, seed: int = 1) -> list[Sample]:
    rng = random.Random(seed)
    return [make_sample(rng, prose=_PROSE, name=name) for _ in range(count)]


def _text(memory: MemoryText) -> str:
    return f"{memory.user}\n{memory.reply}\n{memory.text}"


def test_same_seed_same_samples() -> None:
    first, second = random.Random(9), random.Random(9)
    for _ in range(50):
        assert make_sample(first, prose=_PROSE) == make_sample(second, prose=_PROSE)


def test_the_mixture_is_a_distribution_and_is_drawn_as_one() -> None:
    assert sum(share for _, share in MIXTURE) == pytest.approx(1.0)
    rng = random.Random(2)
    samples = [make_sample(rng, prose=_PROSE) for _ in range(3000)]
    unknown = sum(any(turn.reply == UNKNOWN for turn in sample.turns) for sample in samples)
    assert 0.04 < unknown / len(samples) < 0.08


@pytest.mark.parametrize("name", _NAMES)
def test_samples_are_well_formed(name: str) -> None:
    for sample in _samples(name):
        assert len(sample.memories) <= MAX_MEMORIES and sample.turns
        ages = [memory.age_minutes for memory in sample.memories]
        assert len(set(ages)) == len(ages) and all(age > 0 for age in ages)
        for memory in sample.memories:
            if memory.kind == "exchange":
                assert memory.user and not memory.text
            else:
                assert memory.text and not memory.user and not memory.reply
            assert not re.search(r"[{}]", _text(memory))
        for turn in sample.turns:
            assert turn.user and turn.reply and not re.search(r"[{}]", turn.user)
            if turn.answer:
                assert turn.reply.startswith(TOLD) and turn.answer in turn.reply


@pytest.mark.parametrize("name", sorted({*_NAMES} - {"unknown", "plain", "prose"}))
def test_every_answer_was_told_verbatim(name: str) -> None:
    for sample in _samples(name):
        told = [_text(memory) for memory in sample.memories]
        answered = 0
        for turn in sample.turns:
            if turn.answer:
                answered += 1
                # A subject ("my sister") is an answer only as it was said back ("your sister").
                assert any(
                    turn.answer in text or turn.answer.replace("your", "my", 1) in text
                    for text in told
                ), (turn, told)
            told.append(turn.user)
        assert answered


def test_full_samples_look_like_inference() -> None:
    for sample in _samples("full"):
        assert len(sample.memories) == MAX_MEMORIES and len(sample.turns) == 1


def test_unknown_samples_hold_a_question_that_nothing_answers() -> None:
    samples = _samples("unknown")
    assert all(any(turn.reply == UNKNOWN for turn in sample.turns) for sample in samples)
    assert any(not sample.memories for sample in samples)
    assert any(len(sample.memories) == MAX_MEMORIES for sample in samples)


def test_plain_samples_never_answer_from_memory() -> None:
    samples = _samples("plain")
    assert not any(turn.answer for sample in samples for turn in sample.turns)
    assert any(turn.reply.startswith(NOTED) for sample in samples for turn in sample.turns)


def test_window_samples_tell_before_they_ask() -> None:
    for sample in _samples("window"):
        first = next(at for at, turn in enumerate(sample.turns) if turn.answer)
        assert any(turn.reply.startswith(NOTED) for turn in sample.turns[:first])
        remembered = " ".join(memory.user for memory in sample.memories)
        answers = [turn.answer for turn in sample.turns[first:] if len(turn.answer) > 8]
        assert not any(answer in remembered for answer in answers)


def test_answers_repeat_what_was_said_when_it_was_told() -> None:
    for sample in _samples("window"):
        noted = {turn.reply.removeprefix(NOTED) for turn in sample.turns if not turn.answer}
        for turn in sample.turns:
            assert not turn.answer or turn.reply.removeprefix(TOLD) in noted


def test_prose_samples_tell_a_sentence_and_ask_for_it_by_its_words() -> None:
    for sample in _samples("prose"):
        asked = [turn for turn in sample.turns if turn.reply.startswith(TOLD)]
        assert asked
        said = [memory.user for memory in sample.memories]
        said += [turn.user for turn in sample.turns]
        for turn in asked:
            assert turn.reply.removeprefix(TOLD) in [restated(text) for text in said]


def test_the_newer_of_two_contradicting_tellings_is_the_answer() -> None:
    checked = 0
    for sample in _samples("contradiction"):
        (turn,) = sample.turns
        telling = [memory for memory in sample.memories if turn.answer in memory.user]
        assert telling
        checked += min(memory.age_minutes for memory in telling) <= 60 * 24 * 400 / 2 + 1
    assert checked == len(_samples("contradiction"))


def test_document_samples_hold_the_answer_in_a_document() -> None:
    for sample in _samples("document"):
        documents = [memory.text for memory in sample.memories if memory.kind == "document"]
        assert any(sample.turns[0].answer in text for text in documents)


def test_training_answers_are_training_values() -> None:
    # Reverse questions answer with a subject ("my sister"), whose name alone follows the split.
    answers = Counter(
        value_split(turn.answer)
        for sample in _samples("full", 600)
        for turn in sample.turns
        if not re.match(r"(Who|Whose|What|Which)\b", turn.user)
    )
    assert answers["test"] <= 0.05 * answers.total()


def test_wordings_are_kept_apart() -> None:
    rng = random.Random(3)
    train = " ".join(
        _text(memory)
        for _ in range(500)
        for memory in make_sample(rng, prose=_PROSE, wordings="train").memories
    )
    held_out = " ".join(
        _text(memory)
        for _ in range(500)
        for memory in make_sample(rng, prose=_PROSE, wordings="held_out").memories
    )
    assert "Just to be clear," not in train and "Just to be clear," in held_out
    assert "By the way, " in train


def test_samples_need_no_prose() -> None:
    rng = random.Random(4)
    for _ in range(200):
        sample = make_sample(rng, prose=[])
        assert all(memory.user or memory.text for memory in sample.memories)


def test_prose_is_long_enough_and_ordered_by_seed() -> None:
    pieces = prose_chunks(1)
    assert len(pieces) > 1000
    assert all(40 <= len(piece.split()) <= 110 for piece in pieces)
    assert pieces == prose_chunks(1) != prose_chunks(2)
    assert sorted(pieces) == sorted(prose_chunks(2))
