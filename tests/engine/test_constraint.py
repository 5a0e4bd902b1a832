"""Whatever the logits say, the reply fits its schema, within the tokens it was given.

The logits are random, the tokenizer is memlong-tiny's, grammar and sampler are the real ones.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from schema_dice import fits, random_ids, random_schema
from tokenizers import Tokenizer

import memlong_agent
from memlong_agent.engine.constraint import Constraint, Vocabulary
from memlong_agent.errors import ConfigError

TINY = Path(memlong_agent.__file__).parent / "assets" / "memlong-tiny"
SCHEMAS = int(os.environ.get("MEMLONG_TEST_SCHEMAS", "100"))  # 1,000 before a release
STOP = 2
BACKEND = Tokenizer.from_file(str(TINY / "tokenizer.json"))
SIZE = BACKEND.get_vocab_size()


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(SimpleNamespace(backend_tokenizer=BACKEND), SIZE, frozenset({STOP}))


def reply(constraint: Constraint, most: int, seed: int, **sampling: Any) -> tuple[str, int]:
    """Text and number of tokens of a reply over random logits."""
    ids = random_ids(constraint, SIZE, STOP, most, seed, **sampling)
    return BACKEND.decode(ids), len(ids)


def test_the_checker_can_say_no() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert fits({"a": 1}, schema)
    assert not any(fits(value, schema) for value in ({}, {"a": "1"}, {"a": True}, [], None))


@pytest.mark.parametrize("block", range(10))
def test_replies_to_random_schemas_always_validate(vocabulary: Vocabulary, block: int) -> None:
    for seed in range(block * SCHEMAS // 10, (block + 1) * SCHEMAS // 10):
        schema = random_schema(random.Random(seed))
        temperature = (0.0, 1.0, 5.0)[seed % 3]
        text, _ = reply(vocabulary.constraint({}, schema), 600, seed, temperature=temperature)
        assert fits(json.loads(text), schema), (schema, text)


@pytest.mark.parametrize("block", range(5))
def test_forced_calls_always_have_arguments_that_validate(
    vocabulary: Vocabulary, block: int
) -> None:
    for seed in range(block * SCHEMAS // 10, (block + 1) * SCHEMAS // 10):
        dice = random.Random(seed)
        calls = {f"tool {n}": random_schema(dice, 2, "object") for n in range(3)}
        text, _ = reply(vocabulary.constraint(calls, None), 600, seed, temperature=1.0)
        call = json.loads(text)
        assert list(call) == ["name", "arguments"]
        assert fits(call["arguments"], calls[call["name"]]), (calls, text)


@pytest.mark.parametrize("format", ["date-time", "date", "email", "ipv4", "ipv6", "uuid", "uri"])
def test_strings_of_a_format_end_in_time(vocabulary: Vocabulary, format: str) -> None:
    schema = {"type": "string", "format": format}
    constraint = vocabulary.constraint({}, schema)
    text, tokens = reply(constraint, 60, 1, temperature=1.0)
    assert constraint.complete and tokens <= 60 and isinstance(json.loads(text), str)


def test_a_reply_that_would_ramble_is_closed_in_the_last_tokens(vocabulary: Vocabulary) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array"}}}
    for most in range(2, 60):
        text, tokens = reply(vocabulary.constraint({}, schema), most, most, temperature=2.0)
        assert fits(json.loads(text), schema) and tokens <= most


def test_recursion_ends(vocabulary: Vocabulary) -> None:
    node = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["next"],
    }
    constraint = vocabulary.constraint({}, {"$defs": {"node": node}, "$ref": "#/$defs/node"})
    text, _ = reply(constraint, 100, 3, temperature=1.0)
    value = json.loads(text)
    while value is not None:
        assert list(value) == ["next"]
        value = value["next"]


def test_too_few_tokens_leave_it_incomplete_and_the_mask_never_ends_it_early(
    vocabulary: Vocabulary,
) -> None:
    schema = {"type": "object", "properties": {"name": {"const": "Rex"}}, "required": ["name"]}
    constraint = vocabulary.constraint({}, schema)
    allowed = constraint.mask(torch.zeros(SIZE)) == 0
    assert allowed[vocabulary.single["{"]] and not allowed[STOP] and allowed.sum() < 5
    _, tokens = reply(constraint, 5, 1)
    assert tokens == 5 and not constraint.complete and not constraint.closed
    text, _ = reply(vocabulary.constraint({}, schema), 60, 1)
    assert text == '{"name": "Rex"}'


def test_properties_of_its_own_invention_only_where_the_schema_asks(vocabulary: Vocabulary) -> None:
    plain: dict[str, Any] = {"type": "object", "properties": {"a": {"const": 1}}}
    for seed in range(20):
        text, _ = reply(vocabulary.constraint({}, plain), 60, seed, temperature=3.0)
        assert json.loads(text) in ({}, {"a": 1})
    both = {"allOf": [plain, {"type": "object", "properties": {"b": {"const": 2}}}]}
    asked = {"required": ["a", "b"], **both}
    text, _ = reply(vocabulary.constraint({}, asked), 60, 1)
    assert {"a": 1, "b": 2}.items() <= json.loads(text).items()


A = {"a": {"const": 1}}
B = {"properties": {"b": {"const": 2}}, "required": ["b"]}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": A, "required": ["a"], "anyOf": [B, B]},
        {"type": "object", "properties": A, "required": ["a", "b"]},
        {
            "type": "object",
            "properties": A,
            "required": ["a"],
            "$ref": "#/$defs/b",
            "$defs": {"b": B},
        },
    ],
)
def test_what_is_asked_for_elsewhere_is_no_invention(
    vocabulary: Vocabulary, schema: dict[str, Any]
) -> None:
    text, _ = reply(vocabulary.constraint({}, schema), 200, 1)
    assert json.loads(text)["a"] == 1 and "b" in json.loads(text)


def test_properties_may_be_called_like_keywords(vocabulary: Vocabulary) -> None:
    five = {"$ref": "#/$defs/five"}
    one = {"type": "object", "properties": {"x": {"const": 1}}}
    names = {"default": five, "enum": five, "properties": one, "minProperties": {"const": 3}}
    parameters = {"$defs": {"five": {"const": 5}}, "properties": names, "required": [*names]}
    for seed in range(5):
        call = vocabulary.constraint({"t": parameters}, None)
        text, _ = reply(call, 200, seed, temperature=2.0)
        made = json.loads(text)["arguments"]
        assert made.pop("properties") in ({}, {"x": 1})
        assert made == {"default": 5, "enum": 5, "minProperties": 3}


def test_a_tool_without_parameters_is_called_without_arguments(vocabulary: Vocabulary) -> None:
    for seed in range(5):
        text, _ = reply(vocabulary.constraint({"now": {}}, None), 60, seed, temperature=3.0)
        assert text == '{"name": "now", "arguments": {}}'


def test_names_by_pattern_are_kept(vocabulary: Vocabulary) -> None:
    schema = {"properties": {"a": {"const": 1}}, "patternProperties": {"^x[12]$": {"const": 2}}}
    seen = set()
    for seed in range(20):
        constraint = vocabulary.constraint({}, {"type": "object", **schema})
        text, _ = reply(constraint, 60, seed, temperature=3.0)
        assert json.loads(text).items() <= {"a": 1, "x1": 2, "x2": 2}.items()
        seen |= set(json.loads(text))
    assert seen == {"a", "x1", "x2"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "no-such-format"},
        {"type": "array", "uniqueItems": True},
        {"not": {"type": "string"}},
        {"type": "object", "minProperties": 2},
        {"$ref": "#/$defs/missing"},
        {"type": "no-such-type"},
        {"type": "object", "properties": {"a": {"minProperties": 2}}},
    ],
)
def test_what_cannot_be_guaranteed_is_refused(
    vocabulary: Vocabulary, schema: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"cannot be guaranteed.*\.$"):
        vocabulary.constraint({}, schema)


@pytest.mark.parametrize("schema", [{"const": {1}}, {"type": object}])
def test_a_schema_that_is_not_json_is_one_sentence(
    vocabulary: Vocabulary, schema: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"not JSON.*\.$"):
        vocabulary.constraint({}, schema)


def test_without_the_library_the_extra_is_named(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"llguidance.*pip install.*\[langchain\]"):
        vocabulary.constraint({}, {"type": "object"})
