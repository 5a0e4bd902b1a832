"""Tools, choices and schemas on their way to the engine."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_memlong._schemas import reply_schema, tool_arguments, tool_choice
from pydantic import BaseModel


class Dog(BaseModel):
    """A dog."""

    name: str
    tags: dict[str, str]


def test_a_class_and_a_schema_are_passed_on_as_they_are() -> None:
    schema = reply_schema(Dog)
    assert isinstance(schema, dict) and schema["required"] == ["name", "tags"]
    # A property may be called what a keyword is called.
    named = {"title": "x", "type": "object", "properties": {"properties": {"type": "string"}}}
    assert reply_schema(named) == named
    assert tool_arguments({"response_format": named}) == {"schema": named}


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        (None, "auto"),
        ("auto", "auto"),
        ("none", "none"),
        (True, "any"),
        (False, "auto"),
        ("required", "any"),
        ("Dog", "Dog"),
        ({"type": "function", "function": {"name": "Dog"}}, "Dog"),
        ({"type": "any"}, "any"),
    ],
)
def test_choices(choice: Any, found: str) -> None:
    assert tool_choice(choice) == found


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, {}),
        ({"type": "text"}, {}),
        ({"type": "json_object"}, {"schema": "json"}),
        (
            {"type": "json_schema", "json_schema": {"schema": {"title": "x", "type": "integer"}}},
            {"schema": {"title": "x", "type": "integer"}},
        ),
    ],
)
def test_response_formats(wanted: Any, found: dict[str, Any]) -> None:
    assert tool_arguments({"response_format": wanted}) == found
