"""Restating: the user's words said back, values untouched."""

from __future__ import annotations

import pytest

from memlong_agent.training.facts import is_exact, make_facts
from memlong_agent.training.restate import MOST_WORDS, restated, sentence_of


@pytest.mark.parametrize(
    ("message", "values", "expected"),
    [
        ("My dog is called Rex.", ("Rex",), "your dog is called Rex."),
        ("I'm 28 and we've moved.", (), "you're 28 and you've moved."),
        ("I am late. I was there with our cat.", (), "you are late. You were there with your cat."),
        ("By the way, my PIN is 4711. Thanks!", ("4711",), "your PIN is 4711."),
        ('I read "My I and We" again', ("My I and We",), 'you read "My I and We" again'),
        ("It leaves at 7:40 am for the US.", (), "It leaves at 7:40 am for the US."),
        ("Iris came in May.", (), "Iris came in May."),
        ("my key\nhangs here", (), "your key hangs here"),
        ("Actually, mine is red.", ("red",), "yours is red."),
    ],
)
def test_the_second_person_says_the_same(message, values, expected):
    assert restated(message, *values) == expected


def test_of_a_long_message_the_sentence_with_the_value_is_said_back():
    idle = "Nothing much happened at home today. " * (MOST_WORDS // 6 + 1)
    assert restated(f"{idle}My code is KX-4471! {idle}", "KX-4471") == "your code is KX-4471!"
    assert restated(idle) == "Nothing much happened at home today."


def test_a_sentence_of_a_document_is_quoted_as_it_stands():
    text = "I went home. My fee is 5.50 euros. We stayed."
    assert sentence_of(text, "5.50 euros") == "My fee is 5.50 euros."


@pytest.mark.parametrize("seed", range(5))
def test_said_back_a_fact_is_still_exact(seed):
    facts = make_facts(100, seed)
    answers = [fact.answer for fact in facts]
    for fact in facts:
        assert is_exact(fact.restated, fact.answer, answers), fact
