"""Tools, tool choice and schemas of a call, in the form that memlong-agent takes.

In: what LangChain and its users pass. Out: OpenAI function dictionaries, a choice, a JSON schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from langchain_core.utils.function_calling import convert_to_json_schema

from memlong_agent.errors import ConfigError


def tool_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Tools, tool choice and schema of a call, as `MemLong.respond` takes them."""
    found: dict[str, Any] = {}
    if tools := kwargs.get("tools"):
        found |= {
            "tools": list(tools),
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
    return json_schema(wanted)


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
