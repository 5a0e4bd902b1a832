"""Filters of store searches, as LangGraph's own stores read them.

In: a stored value and a filter. Out: whether it passes. Equality, nested dictionaries, lists, and
`$eq`, `$ne`, `$gt`, `$gte`, `$lt`, `$lte`; what cannot be compared does not pass.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from memlong_agent.errors import ConfigError

_ORDER: dict[str, Callable[[float, float], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


def matches(value: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether `value` has all that `wanted` names. ConfigError for an unknown operator."""
    return all(_equal(value.get(name), each) for name, each in wanted.items())


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        if any(str(name).startswith("$") for name in wanted):
            return all(_compare(found, name, each) for name, each in wanted.items())
        return isinstance(found, Mapping) and matches(found, wanted)
    if isinstance(wanted, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(wanted)
        return same and all(_equal(a, b) for a, b in zip(found, wanted, strict=True))
    return bool(found == wanted)


def _compare(found: Any, name: str, wanted: Any) -> bool:
    if name in ("$eq", "$ne"):
        return bool((found == wanted) is (name == "$eq"))
    if name not in _ORDER:
        known = ", ".join(("$eq", "$ne", *_ORDER))
        raise ConfigError(f"Unknown operator {name!r} in a filter. Use one of: {known}.")
    try:
        return _ORDER[name](float(found), float(wanted))
    except (TypeError, ValueError):
        return False
