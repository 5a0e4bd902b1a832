"""Between LlamaIndex's types and memlong-agent's: pure functions, no model and no memory.

In: chat messages, tools and tool choices as LlamaIndex has them, replies as memlong-agent gives
them. Out: the other side's form. Blocks that are not text, tool calls or notes about other text are
refused, because the model reads text only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ChatResponse,
    CitableBlock,
    CitationBlock,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection

from memlong_agent import ConfigError, Recall, Reply

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}
_CHOICES = {None: "auto", "auto": "auto", "none": "none", "any": "any", "required": "any"}


def messages_in(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as `MemLong.respond` takes them; assistant messages that say nothing are left out.

    Raises ConfigError for a picture, sound, film or document block.
    """
    given = [_message(each) for each in messages]
    return [each for each in given if each["role"] != "assistant" or _says_something(each)]


def text_of(message: ChatMessage) -> str:
    """The text of a message's blocks, one to a line; citations and thoughts are not part of it."""
    texts = [text for block in message.blocks if (text := _block_text(block)) is not None]
    return "\n".join(texts)


def is_final(message: ChatMessage) -> bool:
    """Whether it is an assistant's answer, not a call of tools."""
    return _ROLES[message.role] == "assistant" and not _calls(message)


def is_user(message: ChatMessage) -> bool:
    """Whether the user said it."""
    return _ROLES[message.role] == "user"


def choice_in(choice: Any, required: bool) -> str:
    """`tool_choice` in any of the forms in use, as "auto", "none", "any" or a tool's name."""
    if isinstance(choice, Mapping):
        choice = choice.get("function", choice).get("name", choice.get("type"))
    if choice is None and required:
        return "any"
    if not isinstance(choice, str | None):
        raise ConfigError(
            f'tool_choice={choice!r} is none that is known. Pass "auto", "none", "any" or a name.'
        )
    return _CHOICES.get(choice, choice or "auto")


def piece_out(text: str, piece: str) -> ChatResponse:
    """What a stream gives while the reply is being made: all text so far, and the new piece."""
    message = ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=text)])
    return ChatResponse(message=message, delta=piece)


def reply_out(reply: Reply, *, citations: bool, delta: str | None = None) -> ChatResponse:
    """The finished reply: text, tool calls and, if wanted, what was recalled as citations."""
    said = [TextBlock(text=reply.text)] if reply.text or not reply.tool_calls else []
    calls = [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments)
        for call in reply.tool_calls
    ]
    cited = [_citation(each) for each in reply.recalled] if citations else []
    message = ChatMessage(role=MessageRole.ASSISTANT, blocks=[*said, *calls, *cited])
    if calls:
        # LlamaIndex's structured streaming looks for calls here only (program/utils.py).
        message.additional_kwargs["tool_calls"] = [_openai_call(block) for block in calls]
    return ChatResponse(message=message, delta=delta, raw=raw_out(reply))


def completion_out(response: ChatResponse) -> CompletionResponse:
    """The same response for a completion; citations stand in `additional_kwargs`."""
    cited = [block for block in response.message.blocks if isinstance(block, CitationBlock)]
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        additional_kwargs={"citations": cited} if cited else {},
    )


def raw_out(reply: Reply) -> dict[str, Any]:
    """Token counts and the story of the memory, as plain JSON.

    Prompt tokens count what was read from the memory too; `cached_tokens` is that part of them,
    because it was never computed again.
    """
    usage = reply.usage
    read = usage.prompt_tokens + usage.recalled_tokens
    return {
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": read + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.recalled_tokens},
        },
        "finish_reason": "tool_calls" if reply.tool_calls else reply.finish_reason,
        "memlong": {
            "recalls": [recall.model_dump(mode="json") for recall in reply.recalled],
            "attention_mass": reply.attention_mass,
            "memory_ids": list(reply.memory_ids),
            "session_id": reply.session_id,
            "written_tokens": usage.written_tokens,
            "overflowed_tokens": usage.overflowed_tokens,
            "evicted": usage.evicted,
        },
    }


def selections(response: ChatResponse) -> list[ToolSelection]:
    """The tool calls of a response."""
    return [
        ToolSelection(
            tool_id=str(call["id"]), tool_name=call["name"], tool_kwargs=call["arguments"]
        )
        for call in _calls(response.message)
    ]


def _message(message: ChatMessage) -> dict[str, Any]:
    given: dict[str, Any] = {"role": _ROLES[message.role], "content": text_of(message)}
    if given["role"] == "tool":
        given["tool_call_id"] = str(message.additional_kwargs.get("tool_call_id") or "")
        given["name"] = str(message.additional_kwargs.get("name") or "")
    elif given["role"] == "assistant" and (calls := _calls(message)):
        given["tool_calls"] = calls
    return given


def _says_something(message: Mapping[str, Any]) -> bool:
    return bool(str(message["content"]).strip() or message.get("tool_calls"))


def _calls(message: ChatMessage) -> list[dict[str, Any]]:
    return [
        {
            "id": block.tool_call_id or "",
            "name": block.tool_name,
            "arguments": _arguments(block.tool_kwargs),
        }
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ]


def _arguments(given: dict[str, Any] | str) -> dict[str, Any]:
    """Some models leave arguments as JSON text, perhaps broken; a call without any is honest."""
    if isinstance(given, dict):
        return given
    try:
        parsed = json.loads(given or "{}")
    except json.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _block_text(block: Any) -> str | None:
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, CitableBlock):
        texts = [_block_text(each) or "" for each in block.content]
        return "\n".join([block.title, *texts])
    if isinstance(block, ToolCallBlock | CitationBlock | ThinkingBlock | CachePoint):
        return None
    raise ConfigError(
        f"The model reads text only, but a message holds a {type(block).__name__}. Replace it by "
        "its text."
    )


def _citation(recall: Recall) -> CitationBlock:
    when = f"{recall.created_at:%Y-%m-%d %H:%M}"
    return CitationBlock(
        cited_content=TextBlock(text=recall.text),
        source=recall.source or recall.session_id or recall.memory_id,
        title=f"memory {recall.memory_id} of {when}",
        additional_location_info={"chunk": recall.chunk},
    )


def _openai_call(block: ToolCallBlock) -> dict[str, Any]:
    function = {"name": block.tool_name, "arguments": json.dumps(block.tool_kwargs)}
    return {"id": block.tool_call_id, "type": "function", "function": function}
