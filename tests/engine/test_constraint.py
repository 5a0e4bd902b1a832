"""Whatever the logits say, the reply fits its schema, within the tokens it was given.

The logits are random, the tokenizer is memlong-tiny's, grammar and sampler are the real ones. The
checker below knows just the keywords that the random schemas use.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

import memlong_agent
from memlong_agent.config import Sampling
from memlong_agent.engine import Sampler
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
    """Text and number of tokens of a reply over random logits, which prefer some tokens a lot."""
    dice = torch.Generator().manual_seed(seed)
    liked = torch.randn(SIZE, generator=dice) * 4
    sampler = Sampler(Sampling(seed=seed, **sampling), constraint)
    ids: list[int] = []
    while len(ids) < most and not sampler.closed:
        token = sampler.next_id(liked + torch.randn(SIZE, generator=dice), most - len(ids))
        if token == STOP:
            break
        ids.append(token)
    return BACKEND.decode(ids), len(ids)


def random_schema(dice: random.Random, depth: int = 3, kind: str = "") -> dict[str, Any]:
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern"]
    deep = ["object", "array", "anyOf"] * 3
    kind = kind or dice.choice(kinds if depth == 0 else [*kinds, *deep])
    low = dice.randint(-500, 500)
    if kind == "object":
        names = dice.sample(["name", "a", "größe", "x y", 'q"', "items", "n1"], dice.randint(0, 4))
        required = [name for name in names if dice.random() < 0.6]
        parts = {name: random_schema(dice, depth - 1) for name in names}
        found: dict[str, Any] = {"type": kind, "properties": parts, "required": required}
        return found if dice.random() < 0.7 else {**found, "additionalProperties": True}
    if kind == "array":
        least = dice.randint(0, 3)
        return {
            "type": kind,
            "items": random_schema(dice, depth - 1),
            "minItems": least,
            "maxItems": least + dice.randint(0, 3),
        }
    if kind == "anyOf":
        return {"anyOf": [random_schema(dice, depth - 1) for _ in range(3)]}
    simple: dict[str, dict[str, Any]] = {
        "string": {"type": "string", "minLength": dice.randint(0, 5), "maxLength": 12},
        "integer": {"type": "integer", "minimum": low, "maximum": low + dice.randint(0, 99)},
        "number": {"type": "number", "exclusiveMinimum": low, "maximum": low + 0.5},
        "enum": {"enum": ["red", 3, None, {"a": [1]}, "re"]},
        "const": {"const": dice.choice(["yes", 0, "é\n"])},
        "pattern": {"type": "string", "pattern": r"^[A-Z]{2}-\d{1,3}$"},
    }
    return simple.get(kind, {"type": kind})


TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    kind = schema.get("type")
    if kind and not isinstance(value, TYPES[kind]):
        return False
    if isinstance(value, bool) and kind in ("integer", "number"):
        return False
    checks = {
        "anyOf": lambda options: any(fits(value, each) for each in options),
        "enum": lambda values: value in values,
        "const": lambda wanted: value == wanted,
        "minLength": lambda n: len(value) >= n,
        "maxLength": lambda n: len(value) <= n,
        "pattern": lambda pattern: re.fullmatch(pattern, value, re.ASCII) is not None,
        "minimum": lambda n: value >= n,
        "exclusiveMinimum": lambda n: value > n,
        "maximum": lambda n: value <= n,
        "minItems": lambda n: len(value) >= n,
        "maxItems": lambda n: len(value) <= n,
        "items": lambda each: all(fits(item, each) for item in value),
        "required": lambda names: set(names) <= set(value),
        "properties": lambda parts: all(
            fits(value[name], part) for name, part in parts.items() if name in value
        ),
    }
    return all(check(schema[key]) for key, check in checks.items() if key in schema)


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


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "no-such-format"},
        {"type": "array", "uniqueItems": True},
        {"not": {"type": "string"}},
        {"type": "object", "minProperties": 2},
        {"$ref": "#/$defs/missing"},
        {"type": "no-such-type"},
    ],
)
def test_what_cannot_be_guaranteed_is_refused(
    vocabulary: Vocabulary, schema: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"cannot be guaranteed.*\.$"):
        vocabulary.constraint({}, schema)


def test_without_the_library_the_extra_is_named(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"llguidance.*pip install.*\[langchain\]"):
        vocabulary.constraint({}, {"type": "object"})
