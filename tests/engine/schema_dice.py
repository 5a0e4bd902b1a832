"""Random schemas, replies over random logits, and a checker of just the keywords used here."""

from __future__ import annotations

import random
import re
from typing import Any

import torch

from memlong_agent.config import Sampling
from memlong_agent.engine import Constraint, Sampler


def random_ids(
    constraint: Constraint, size: int, stop: int, most: int, seed: int, **sampling: Any
) -> list[int]:
    """Ids of a reply over random logits `(size,)`, which prefer some tokens a lot."""
    dice = torch.Generator().manual_seed(seed)
    liked = torch.randn(size, generator=dice) * 4
    sampler = Sampler(Sampling(seed=seed, **sampling), constraint)
    ids: list[int] = []
    while len(ids) < most and not sampler.closed:
        token = sampler.next_id(liked + torch.randn(size, generator=dice), most - len(ids))
        if token == stop:
            break
        ids.append(token)
    return ids


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
