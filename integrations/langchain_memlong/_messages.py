"""LangChain messages in and out.

In: LangChain's messages. Out: the plain dictionaries that memlong-agent takes, and LangChain's
messages from its replies. Knows no session and no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk

from memlong_agent.errors import ConfigError
from memlong_agent.records import Reply

_ROLES: dict[type[BaseMessage], str] = {
    SystemMessage: "system",
    HumanMessage: "user",
    AIMessage: "assistant",
    ToolMessage: "tool",
    FunctionMessage: "tool",
}
_CHAT_ROLES = {"developer": "system", "human": "user", "ai": "assistant", "function": "tool"}
# Blocks of a reply that are not text and stand elsewhere in the message, or are nobody's input.
_NOT_SAID = {
    "tool_use", "tool_call", "tool_call_chunk", "input_json_delta", "function_call",
    "thinking", "redacted_thinking", "reasoning", "reasoning_content",
}  # fmt: skip


def to_dicts(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Messages with role, content and perhaps tool calls; ConfigError for an image or a sound."""
    return [_to_dict(message) for message in messages]


def said_last(messages: Sequence[BaseMessage]) -> str:
    """Text of the last human message, blank if there is none."""
    said = (message for message in reversed(messages) if isinstance(message, HumanMessage))
    return next((text_of(message) for message in said), "")


def text_of(message: BaseMessage) -> str:
    """A message's text. ConfigError for an image, a sound or a file."""
    if isinstance(message.content, str):
        return message.content
    parts: list[str] = []
    for block in message.content:
        kind = "text" if isinstance(block, str) else str(block.get("type"))
        if kind == "text":
            parts.append(block if isinstance(block, str) else str(block.get("text") or ""))
        elif kind not in _NOT_SAID or not isinstance(message, AIMessage):
            raise ConfigError(
                f"This model reads text only, and a {message.type} message holds {kind!r}. "
                "Pass text, or describe the content in words."
            )
    return "".join(parts)


def to_message(reply: Reply, model: str) -> AIMessage:
    """A whole reply."""
    calls = [
        ToolCall(name=call.name, args=dict(call.arguments), id=call.id, type="tool_call")
        for call in reply.tool_calls
    ]
    return AIMessage(
        content=reply.text,
        tool_calls=calls,
        usage_metadata=usage(reply),
        response_metadata=metadata(reply, model),
    )


def last_chunks(reply: Reply, model: str) -> Iterator[AIMessageChunk]:
    """What follows the pieces of text: tool calls, then usage and metadata, once."""
    for index, call in enumerate(reply.tool_calls):
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        chunk = tool_call_chunk(name=call.name, args=arguments, id=call.id, index=index)
        yield AIMessageChunk(content="", tool_call_chunks=[chunk])
    yield AIMessageChunk(
        content="",
        usage_metadata=usage(reply),
        response_metadata=metadata(reply, model),
        chunk_position="last",
    )


def usage(reply: Reply) -> UsageMetadata:
    """Recalled tokens count as input that was read from a cache: their K/V were not computed."""
    read = reply.usage.prompt_tokens + reply.usage.recalled_tokens
    return UsageMetadata(
        input_tokens=read,
        output_tokens=reply.usage.completion_tokens,
        total_tokens=read + reply.usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=reply.usage.recalled_tokens),
    )


def metadata(reply: Reply, model: str) -> dict[str, Any]:
    """Plain JSON: who answered, why it ended, and under `memlong` what was recalled and written."""
    return {
        "model_name": model,
        "model_provider": "memlong",
        "finish_reason": "tool_calls" if reply.tool_calls else reply.finish_reason,
        "memlong": {
            "recalls": [recall.model_dump(mode="json") for recall in reply.recalled],
            "attention_mass": reply.attention_mass,
            "memory_ids": list(reply.memory_ids),
            "session_id": reply.session_id,
            "usage": reply.usage.model_dump(),
        },
    }


def _to_dict(message: BaseMessage) -> dict[str, Any]:
    found: dict[str, Any] = {"role": _role(message), "content": text_of(message)}
    if message.name:
        found["name"] = message.name
    if isinstance(message, AIMessage) and message.tool_calls:
        found["tool_calls"] = [
            {"id": call["id"] or "", "name": call["name"], "arguments": call["args"]}
            for call in message.tool_calls
        ]
    if isinstance(message, ToolMessage):
        found["tool_call_id"] = message.tool_call_id
    return found


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return _CHAT_ROLES.get(message.role, message.role)
    for kind, role in _ROLES.items():
        if isinstance(message, kind):
            return role
    raise ConfigError(
        f"A {type(message).__name__} has no role in a prompt. Pass system, human, AI and tool "
        "messages."
    )
