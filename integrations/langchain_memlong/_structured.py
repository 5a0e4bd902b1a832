"""Structured replies: the model bound to a schema, and the parser of what comes back.

In: a chat model, a schema, a method. Out: one runnable. Knows nothing of decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, cast

from langchain_core.language_models import LanguageModelInput
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from langchain_memlong._schemas import json_schema
from memlong_agent.errors import ConfigError

if TYPE_CHECKING:
    from langchain_memlong.chat_models import ChatMemLong

Method = Literal["json_schema", "function_calling", "json_mode"]
Structured = Runnable[LanguageModelInput, dict[str, Any] | BaseModel]
_METHODS = ("json_schema", "function_calling", "json_mode")


def structured(
    chat: ChatMemLong,
    schema: dict[str, Any] | type | None,
    method: Method,
    include_raw: bool,
    unknown: Mapping[str, Any],
) -> Structured:
    """`chat` with its replies as objects of `schema`; ConfigError for what is not understood."""
    if unknown:
        raise ConfigError(
            f"Unknown argument {min(unknown)!r}. Use method, include_raw and strict; bind the rest."
        )
    if method not in _METHODS:
        raise ConfigError(f"method={method!r}: use one of {', '.join(_METHODS)}.")
    if schema is None and method != "json_mode":
        raise ConfigError(
            f"method={method!r} needs a schema. Pass one, or use json_mode for any JSON object."
        )
    bound, parser = (_forced if method == "function_calling" else _shaped)(chat, schema, method)
    if not include_raw:
        return cast("Structured", bound | parser)
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    kept = parsed.with_fallbacks([failed], exception_key="parsing_error")
    return cast("Structured", RunnableMap(raw=bound) | kept)


def _forced(chat: ChatMemLong, schema: Any, method: str) -> tuple[Any, Any]:
    """One forced call of a tool whose arguments are the object."""
    name = convert_to_openai_tool(schema)["function"]["name"]
    noted = _noted(schema, method)
    bound = chat.bind_tools([schema], tool_choice=name, ls_structured_output_format=noted)
    if _is_pydantic(schema):
        return bound, PydanticToolsParser(tools=[schema], first_tool_only=True)
    return bound, JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)


def _shaped(chat: ChatMemLong, schema: Any, method: str) -> tuple[Any, Any]:
    """A reply whose text is the object."""
    if schema is None:
        noted = {"kwargs": {"method": method}, "schema": {"type": "object"}}
        wanted: dict[str, Any] = {"type": "json_object"}
    else:
        noted = _noted(schema, method)
        wanted = {"type": "json_schema", "json_schema": {"schema": json_schema(schema)}}
    parser: BaseOutputParser[Any] = JsonOutputParser()
    if schema is not None and _is_pydantic(schema):
        parser = PydanticOutputParser(pydantic_object=schema)
    return chat.bind(response_format=wanted, ls_structured_output_format=noted), parser


def _noted(schema: Any, method: str) -> dict[str, Any]:
    """What traces say of it; a JSON schema without a title, which LangChain refuses, is itself."""
    try:
        shape = convert_to_json_schema(schema)
    except ValueError:
        shape = json_schema(schema)
    return {"kwargs": {"method": method}, "schema": shape}


def _is_pydantic(schema: Any) -> bool:
    return isinstance(schema, type) and is_basemodel_subclass(schema)
