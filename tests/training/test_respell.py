"""Respelling: other values in the same words, everywhere alike."""

from __future__ import annotations

import random
import re

import pytest

from memlong_agent.training.dialogues import MemoryText, Sample, Turn, make_sample
from memlong_agent.training.everyday import everyday_sample
from memlong_agent.training.respell import respelled, spelling_pieces
from memlong_agent.training.tokenizer import train_tokenizer
from memlong_agent.training.words import value_split

PIECES = ("ba", "dd", "full", "qu", "th", "youth")


def sample(told: str, reply: str, answer: str) -> Sample:
    memory = MemoryText("exchange", told, f"Noted: {reply}", "", 5)
    return Sample((memory,), (Turn("And?", f"You told me: {reply}", answer),))


def texts(one: Sample) -> list[str]:
    memories = [text for each in one.memories for text in (each.user, each.reply, each.text)]
    return memories + [text for turn in one.turns for text in (turn.user, turn.reply)]


@pytest.mark.parametrize("seed", range(40))
def test_a_value_changes_everywhere_and_the_rest_stays(seed: int) -> None:
    rng = random.Random(seed)
    if seed % 2:
        before = everyday_sample(rng, split="train")
    else:
        before = make_sample(rng, split="train", wordings="train", prose=[], name="full")
    after = respelled(random.Random(seed), before, PIECES)
    assert after == respelled(random.Random(seed), before, PIECES)
    for old, new in zip(before.turns, after.turns, strict=True):
        if new.answer == old.answer:
            continue
        assert value_split(new.answer) == "train" and new.answer in new.reply
        told = [f"{one.user} {one.text}" for one in after.memories]
        assert any(new.answer in text for text in [*told, *(turn.user for turn in after.turns)])
        whole = re.compile(rf"(?<!\w){re.escape(old.answer)}(?!\w)")
        assert not any(whole.search(text) for text in texts(after))
    for was, now in zip(texts(before), texts(after), strict=True):
        values = [
            (old.answer, new.answer) for old, new in zip(before.turns, after.turns, strict=True)
        ]
        assert was == now or any(old in was and new in now for old, new in values)


def test_most_values_of_training_are_respelled() -> None:
    rng, changed = random.Random(0), 0
    for _ in range(200):
        before = make_sample(rng, split="train", wordings="train", prose=[], name="full")
        changed += respelled(rng, before, PIECES) != before
    assert changed > 180


@pytest.mark.parametrize(
    ("answer", "shape"),
    [
        ("Siddam", r"[A-Z][a-z]+"),
        ("bimi", r"[a-z]+"),
        ("W81", r"W\d\d"),
        ("OSLO", r"[A-Z]+"),
        ("at Qerk's", r"at [A-Z][a-z]+'s"),
        ("Олалол", r"[ОАЛоал]{3,}"),
    ],
)
def test_letter_case_script_and_digits_stay(answer: str, shape: str) -> None:
    told = f"my church is {answer}, and it rained"
    for seed in range(20):
        after = respelled(random.Random(seed), sample(told, told, answer), PIECES)
        assert re.fullmatch(shape, after.turns[0].answer)
        assert after.memories[0].user == told.replace(answer, after.turns[0].answer)


@pytest.mark.parametrize(
    ("told", "reply", "answer"),
    [
        ("I am off to it", "you are off to it", "it"),  # nothing long enough to be changed
        ("I like my shed", "you like your shed", "your shed"),  # told with "my"
        ("I like Bo", "I don't know.", ""),  # nothing is answered
    ],
)
def test_what_cannot_be_respelled_stays(told: str, reply: str, answer: str) -> None:
    before = sample(told, reply, answer)
    assert respelled(random.Random(0), before, PIECES) == before


def test_pieces_are_the_letters_of_the_vocabulary() -> None:
    words = ["Tell me of the harbour, the harbour!", "Ещё раз", "24 hours at the harbour"] * 9
    pieces = spelling_pieces(train_tokenizer(words, 300))
    assert "harbour" in pieces and "e" in pieces and len(set(pieces)) == len(pieces)
    assert all(re.fullmatch("[a-z]+", piece) for piece in pieces)
