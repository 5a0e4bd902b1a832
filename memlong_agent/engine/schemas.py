"""JSON schemas brought into the terms in which llguidance keeps its word.

In: schemas of arguments by function, the schema of an answer. Out: one schema for all that a reply
may be. Every step narrows: what fits the new schema fits the old one. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from memlong_agent.errors import ConfigError

Schema = dict[str, Any]
_ONE_WAY = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `json.dumps` writes: what models saw in training, and no room for endless blanks."""
_VALUES = ("const", "enum", "default", "examples")  # keywords that hold values, not schemas
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords that hold schemas under names of the caller's choice."""


def reply_schema(
    calls: Mapping[str, Mapping[str, Any]], schema: Mapping[str, Any] | None, arguments: str
) -> Schema:
    """One of `calls`, `{"name": ..., arguments: ...}`, or what fits `schema`.

    Every part keeps its own `$defs`. Raises ConfigError for what the library accepts and does not
    guarantee.
    """
    if not calls and schema is not None:
        return {**_fitted(schema), "x-guidance": _ONE_WAY}
    options: list[Schema] = []
    parts: dict[str, Schema] = {}
    for number, (name, parameters) in enumerate(calls.items()):
        part = f"call_{number}"
        parts[part] = _moved(_fitted(_object(parameters)), part)
        options.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": name},
                    arguments: {"$ref": f"#/$defs/{part}"},
                },
                "required": ["name", arguments],
                "additionalProperties": False,
            }
        )
    if schema is not None:
        parts["answer"] = _moved(_fitted(schema), "answer")
        options.append({"$ref": "#/$defs/answer"})
    return {"anyOf": options, "$defs": parts, "x-guidance": _ONE_WAY}


def _object(parameters: Mapping[str, Any]) -> Schema:
    """Arguments are an object; without any parameters an empty one."""
    return {"type": "object", **(parameters or {"properties": {}})}


def _moved(schema: Schema, part: str) -> Schema:
    """The schema with references to its own root led to its new place."""

    def move(each: Schema) -> Schema:
        reference = each.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            each["$ref"] = f"#/$defs/{part}{reference[1:]}"
        return each

    found: Schema = _rebuilt(schema, move)
    return found


def _fitted(schema: Mapping[str, Any]) -> Schema:
    """No properties of the model's own invention, and bounds of numbers as the library needs them.

    JSON Schema allows any further property unless it is told not to.
    """
    close = not _combines(schema)

    def fit(each: Schema) -> Schema:
        _check(each)
        named = each.get("properties")
        if close and isinstance(named, Mapping) and set(each.get("required", ())) <= set(named):
            each.setdefault("additionalProperties", False)
        return each if each.get("type") == "integer" else _narrowed(each)

    found: Schema = _rebuilt(schema, fit)
    return found


def _combines(schema: Mapping[str, Any]) -> bool:
    """Whether one object must fit several schemas, which leave room for each other's properties."""
    found = False

    def look(each: Schema) -> Schema:
        nonlocal found
        beside = "properties" in each and not {"anyOf", "oneOf", "$ref"}.isdisjoint(each)
        found = found or beside or "allOf" in each
        return each

    _rebuilt(schema, look)
    return found


def _rebuilt(schema: Any, change: Callable[[Schema], Schema]) -> Any:
    """A copy with every schema in it changed, the inner ones first."""
    if isinstance(schema, list | tuple):
        return [_rebuilt(each, change) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    parts: Schema = {}
    for key, each in schema.items():
        if key in _NAMED and isinstance(each, Mapping):
            parts[key] = {name: _rebuilt(part, change) for name, part in each.items()}
        else:
            parts[key] = each if key in _VALUES else _rebuilt(each, change)
    return change(parts)


def _narrowed(schema: Schema) -> Schema:
    """Exclusive bounds of a number as inclusive ones, a millionth further in.

    llguidance 1.9.1 lets an exclusive whole bound through when less than one unit lies between the
    bounds: 448 for 448 < x <= 448.5.
    """
    low = schema.get("exclusiveMinimum", schema.get("minimum"))
    high = schema.get("exclusiveMaximum", schema.get("maximum"))
    if isinstance(low, int | float) and isinstance(high, int | float) and 0 < high - low <= 1:
        margin = (high - low) * 1e-6
        if schema.pop("exclusiveMinimum", None) is not None:
            schema["minimum"] = low + margin
        if schema.pop("exclusiveMaximum", None) is not None:
            schema["maximum"] = high - margin
    return schema


def _check(schema: Schema) -> None:
    """Distinct keys are what the library does not enforce."""
    least = schema.get("minProperties")
    if isinstance(least, int) and least > 1:
        raise ConfigError(
            f"minProperties={least} cannot be guaranteed. Name the required properties instead."
        )
