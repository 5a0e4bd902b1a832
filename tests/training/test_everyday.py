"""Everyday tellings: every line is usable, and every answer stands in a telling."""

from __future__ import annotations

import random

import pytest

from memlong_agent.training.everyday import SLOTS, everyday, everyday_sample
from memlong_agent.training.maker import UNKNOWN
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
    rng, unknown, full = random.Random(5), 0, 0
    for _ in range(1000):
        sample = everyday_sample(rng, split=split)
        full += len(sample.memories) == 8 and len(sample.turns) == 1
        assert 1 <= len(sample.memories) <= 8
        assert len({memory.age_minutes for memory in sample.memories}) == len(sample.memories)
        assert not any("{" in memory.user for memory in sample.memories)
        for turn in sample.turns:
            assert "{" not in turn.user
            if not turn.answer:
                assert turn.reply == UNKNOWN
                unknown += 1
                continue
            assert value_split(turn.answer) == split
            assert turn.reply == f"You told me: {turn.answer}."
            assert any(turn.answer in memory.user for memory in sample.memories)
            assert turn.answer.casefold() not in turn.user.casefold()
    assert 30 <= unknown <= 100
    assert 450 <= full <= 600
