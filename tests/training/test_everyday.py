"""Everyday tellings: every line is usable, and every answer stands in a telling."""

from __future__ import annotations

import random
import re

import pytest

from memlong_agent.training.everyday import HELD_OUT_EVERY, SLOTS, everyday, everyday_sample
from memlong_agent.training.maker import TOLD, UNKNOWN
from memlong_agent.training.values import KINDS
from memlong_agent.training.words import Split, value_split


def test_every_line_is_usable() -> None:
    lines = everyday()
    assert len(lines) == len({line.tell for line in lines})
    for line in lines:
        assert line.kind in KINDS
        assert line.tell.count("{v}") == 1, line.tell
        assert line.asks and all(line.asks)
        assert "{v}" not in " ".join(line.asks), line.asks
        assert set(line.slots) <= SLOTS.keys(), line.slots


def test_same_state_same_sample() -> None:
    first, second = (
        [everyday_sample(rng, split="train") for _ in range(50)]
        for rng in (random.Random(3), random.Random(3))
    )
    assert first == second


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_stand_in_the_memories(split: Split) -> None:
    rng, unknown, full, window = random.Random(5), 0, 0, 0
    for _ in range(1000):
        sample = everyday_sample(rng, split=split)
        asked = [turn for turn in sample.turns if turn.answer or turn.reply == UNKNOWN]
        now = [turn for turn in sample.turns if turn not in asked]
        full += len(sample.memories) + len(now) == 8 and len(asked) == 1
        window += bool(now)
        assert 1 <= len(sample.memories) + len(now) <= 8
        assert len({memory.age_minutes for memory in sample.memories}) == len(sample.memories)
        assert not any("{" in memory.user for memory in sample.memories)
        told = [memory.user for memory in sample.memories] + [turn.user for turn in now]
        for turn in asked:
            assert "{" not in turn.user
            if not turn.answer:
                assert turn.reply == UNKNOWN
                unknown += 1
                continue
            assert value_split(turn.answer) == split
            assert turn.reply.startswith(TOLD) and turn.answer in turn.reply
            assert any(turn.answer in text for text in told)
            assert turn.answer.casefold() not in turn.user.casefold()
    assert 30 <= unknown <= 100
    assert 200 <= full <= 450 and 330 <= window <= 470


def test_held_out_sentences_stay_out_of_training() -> None:
    rng = random.Random(6)
    held_out = {line.tell for line in everyday()[::HELD_OUT_EVERY]}
    assert len(held_out) > 100
    shapes = [re.compile(_shape(tell), re.I) for tell in held_out]
    for _ in range(300):
        sample = everyday_sample(rng, split="train")
        for text in [memory.user for memory in sample.memories]:
            assert not any(shape.fullmatch(text) for shape in shapes), text


def _shape(tell: str) -> str:
    return re.sub(r"\\{\w+\\}", ".+", re.escape(tell))
