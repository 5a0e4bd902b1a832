"""Tools, tool choice and schemas of a call, in the form that memlong-agent takes.

In: what LangChain and its users pass. Out: OpenAI function dictionaries, a choice, a JSON schema.
Objects are closed: JSON Schema lets an object hold anything beside its named properties, which no
tool and no class expects, and which a small model would make use of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from langchain_core.utils.function_calling import convert_to_json_schema

from memlong_agent.errors import ConfigError

_OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties")
_JOINED = ("allOf", "if", "then", "else", "not")  # parts of one object: closing one bars the rest


def tool_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Tools, tool choice and schema of a call, as `MemLong.respond` takes them."""
    found: dict[str, Any] = {}
    if tools := kwargs.get("tools"):
        found |= {
            "tools": [_closed(tool) for tool in tools],
            "tool_choice": tool_choice(kwargs.get("tool_choice")),
        }
    if (schema := reply_schema(kwargs.get("response_format"))) is not None:
        found["schema"] = schema
    return found


def tool_choice(choice: Any) -> str:
    """LangChain's and OpenAI's ways to say it: auto, none, any, or a tool's name."""
    if isinstance(choice, Mapping):
        choice = (choice.get("function") or choice).get("name") or choice.get("type")
    if choice is None or choice is True or choice is False:
        return "any" if choice else "auto"
    return {"required": "any"}.get(str(choice), str(choice))


def reply_schema(wanted: Any) -> dict[str, Any] | Literal["json"] | None:
    """The JSON schema of a `response_format`: a class, OpenAI's dictionaries, or a schema."""
    if wanted is None or (isinstance(wanted, Mapping) and wanted.get("type") == "text"):
        return None
    if isinstance(wanted, Mapping) and wanted.get("type") == "json_object":
        return "json"
    if isinstance(wanted, Mapping) and wanted.get("type") == "json_schema":
        wanted = wanted.get("json_schema", {}).get("schema")
    return dict(_closed(json_schema(wanted)))


def json_schema(schema: Any) -> dict[str, Any]:
    """The JSON schema of a class or of an OpenAI function; a JSON schema is itself."""
    # LangChain's own conversion keeps of a JSON schema only what describes an object.
    if isinstance(schema, Mapping) and "parameters" not in schema and "function" not in schema:
        return dict(schema)
    try:
        return convert_to_json_schema(schema)
    except (TypeError, ValueError, AttributeError) as exc:
        raise ConfigError(
            f"{schema!r} is no schema: {exc}. Pass a Pydantic class, a JSON schema or "
            '{"type": "json_object"}.'
        ) from exc


def _closed(schema: Any) -> Any:
    """A copy in which objects hold their named properties only, unless they say otherwise."""
    if isinstance(schema, list | tuple):
        return [_closed(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {name: each if name in _JOINED else _closed(each) for name, each in schema.items()}
    named = isinstance(schema.get("properties"), Mapping) and schema.get("type") == "object"
    if named and not any(name in schema for name in (*_OPEN, *_JOINED)):
        made["additionalProperties"] = False
    return made
