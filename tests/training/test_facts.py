"""Facts: reproducible, never ambiguous, split by value, and scored by whole words."""

from __future__ import annotations

import random
import re
from typing import get_args

import pytest

from memlong_agent.errors import ConfigError
from memlong_agent.training.claims import Scope, draw_claim
from memlong_agent.training.facts import Fact, is_exact, make_facts, normalize
from memlong_agent.training.phrases import phrases
from memlong_agent.training.subjects import USER, Subject
from memlong_agent.training.templates import Wordings, attributes
from memlong_agent.training.values import KINDS, make_value
from memlong_agent.training.words import Split, value_split


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return make_facts(1000, seed=11)


def _contains(text: str, part: str) -> bool:
    return f" {normalize(part)} " in f" {normalize(text)} "


def test_same_seed_same_facts() -> None:
    assert make_facts(60, seed=5) == make_facts(60, seed=5)
    assert make_facts(60, seed=5) != make_facts(60, seed=6)


def test_two_thousand_facts_have_distinct_keys_and_answers() -> None:
    many = make_facts(2000, seed=1)
    assert len(many) == 2000
    assert len({fact.key for fact in many}) == 2000
    assert len({normalize(fact.answer) for fact in many}) == 2000


def test_answer_stands_verbatim_in_its_tell_and_not_in_its_ask(facts: list[Fact]) -> None:
    for fact in facts:
        assert fact.answer in fact.tell
        assert not _contains(fact.ask, fact.answer)


def test_no_answer_is_in_another_tell_or_answer(facts: list[Fact]) -> None:
    answers = {f" {normalize(fact.answer)} ": fact for fact in facts}
    for fact in facts:
        told, answer = f" {normalize(fact.tell)} ", f" {normalize(fact.answer)} "
        for other, owner in answers.items():
            assert owner is fact or (other not in told and other not in answer)


def test_no_question_is_asked_twice(facts: list[Fact]) -> None:
    assert len({fact.ask for fact in facts}) == len(facts)


def test_no_open_hole_and_no_wrong_article_is_left(facts: list[Fact]) -> None:
    for fact in facts:
        text = f"{fact.tell} {fact.ask}"
        assert not re.search(r"[{}<>|\[\]]", text), text
        assert "  " not in text
        assert not re.search(r"\b(I (is|has|lives|does|was born and)|does I|my's)\b", text), text


def test_users_take_turns_and_may_share_keys() -> None:
    facts = make_facts(400, seed=3, users=2)
    assert [fact.user for fact in facts[:4]] == ["user-1", "user-2", "user-1", "user-2"]
    for user in ("user-1", "user-2"):
        keys = [fact.key for fact in facts if fact.user == user]
        assert len(keys) == len(set(keys)) == 200


def test_facts_are_varied(facts: list[Fact]) -> None:
    assert len({fact.key.split("|")[1] for fact in facts}) > 250
    assert len({fact.tell.split()[0] for fact in facts}) > 100
    assert len(attributes()) > 200


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        make_facts(0, seed=1)
    with pytest.raises(ConfigError, match="at least 1"):
        make_facts(5, seed=1, users=0)


def _values(split: Split, count: int) -> set[str]:
    rng, kinds = random.Random(split), tuple(KINDS)
    values = (make_value(rng, kinds[at % len(kinds)], split) for at in range(count))
    return {value.casefold() for value in values if value}


def test_splits_are_disjoint() -> None:
    train, test = _values("train", 5000), _values("test", 5000)
    assert train.isdisjoint(test)
    assert len(train) > 3000 and len(test) > 2500


def test_one_value_in_five_is_a_test_value() -> None:
    rng = random.Random(0)
    drawn = [value_split(KINDS["invented"](rng)) for _ in range(5000)]
    assert 0.17 < drawn.count("test") / len(drawn) < 0.23


def test_split_ignores_case() -> None:
    for word in ("Velora", "KX-4471", "Tarn", "copper teapot"):
        assert value_split(word) == value_split(word.upper()) == value_split(word.lower())


def test_facts_of_the_test_split_answer_with_test_values() -> None:
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        rng = random.Random(4)
        claims = [draw_claim(rng, split) for _ in range(500)]
        assert all(value_split(claim.value) == split for claim in claims if claim)


def test_every_attribute_can_be_told_and_asked_in_every_set_of_wordings() -> None:
    for attribute in attributes():
        for wordings in get_args(Wordings):
            forms = attribute.forms(wordings, 0)
            assert forms.tells and forms.asks
            assert all("{v}" in form or "{av}" in form for form in forms.tells), attribute.name
            assert not any("{v}" in form.text for form in forms.asks), attribute.name


@pytest.mark.parametrize("section", ["opener_clause", "closer", "ask_np", "ask_clause", "chatter"])
def test_held_out_phrases_are_no_training_phrases(section: str) -> None:
    train, held_out = phrases(section, "train"), phrases(section, "held_out")
    assert held_out and set(train).isdisjoint(held_out)
    assert set(train) | set(held_out) == set(phrases(section, "any"))


def test_scope_refuses_what_would_make_a_question_ambiguous() -> None:
    rng, scope = random.Random(8), Scope()
    phone = next(one for one in attributes() if one.name == "phone number")
    sister = Subject("my sister", "P")
    first = draw_claim(rng, "train", sister, phone)
    again = draw_claim(rng, "train", Subject("My Sister", "P"), phone)
    mine = draw_claim(rng, "train", USER, phone)
    son = draw_claim(rng, "train", Subject("my sister's son", "P"), phone)
    assert first and again and mine and son
    scope.add(first)
    assert not scope.admits(again)
    assert scope.admits(mine)
    assert scope.admits(son) and not scope.admits(son, strict=True)


def test_normalize() -> None:
    assert normalize("  The Café,\nat 14-B Ferrow_Lane! ") == "the café at 14 b ferrow lane"


@pytest.mark.parametrize(
    ("reply", "answer", "others", "exact"),
    [
        ("You told me: Velora.", "Velora", ["Tarn"], True),
        ("it is VELORA, I think", "velora", [], True),
        ("You told me: Veloras.", "Velora", [], False),
        ("You told me: KX 4471.", "KX-4471", ["4472"], True),
        ("You told me: Velora or Tarn.", "Velora", ["Tarn"], False),
        ("You told me: Velora.", "Velora", ["velora", "Tarn"], True),
        ("I don't know.", "Velora", [], False),
        ("", "Velora", [], False),
        ("anything", "...", [], False),
    ],
)
def test_is_exact(reply: str, answer: str, others: list[str], exact: bool) -> None:
    assert is_exact(reply, answer, others) is exact
