"""Explicit messages as callers send them, checked once and brought into one form.

In: dictionaries with role and content, perhaps with tool calls. Out: the system text, the other
messages as a chat template takes them, and what the user said last. Knows no tokenizer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from memlong_agent.chunking import clean_text
from memlong_agent.errors import ConfigError

_ROLES = ("system", "user", "assistant", "tool")
_KEYS = {"role", "content", "tool_calls", "tool_call_id", "name"}
_CALL_ID = re.compile(r"[A-Za-z0-9]{9}")  # the form that Mistral's templates insist on


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole prompt, as a chat template takes it: no two messages of one role in a row but tools'.

    When it is too long, whole parts leave, so that what is left still takes turns: first exchanges
    before the question, then calls of tools since, each with its results. System text, question and
    newest part stay.
    """

    system: str
    past: list[list[dict[str, Any]]]
    """Exchanges before the question: a user message and all that followed it."""
    asked: list[dict[str, Any]]
    """The last user message with its neighbors; nothing if there is none."""
    since: list[list[dict[str, Any]]]
    """What followed: messages of the assistant, each with the results of its calls."""
    question: str
    """The last user message alone, as it was said; blank if there is none."""

    @property
    def leaving(self) -> int:
        """How many parts may leave."""
        return len(self.past) + max(0, len(self.since) - 1)

    def without(self, parts: int) -> list[dict[str, Any]]:
        """The messages when that many of the oldest parts have left."""
        since = self.since[max(0, parts - len(self.past)) :]
        return [*chain(*self.past[parts:]), *self.asked, *chain(*since)]


def conversation(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """The messages in one form. Raises ConfigError for what is not a message."""
    if isinstance(messages, str | Mapping) or not messages:
        raise ConfigError(
            'There are no messages. Pass a list of them: [{"role": "user", "content": "..."}].'
        )
    checked = [_checked(each) for each in messages]
    said = [each["content"] for each in checked if each["role"] == "user"]
    system = [each["content"] for each in checked if each["role"] == "system"]
    turns = merged([each for each in checked if each["role"] != "system"])
    users = [at for at, each in enumerate(turns) if each["role"] == "user"]
    at, after = (users[-1], users[-1] + 1) if users else (0, 0)
    return Conversation(
        system="\n".join(text for text in system if text),
        past=_split(turns[:at], "user"),
        asked=turns[at:after],
        since=_split(turns[after:], "assistant"),
        question=said[-1] if said else "",
    )


def merged(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbors of one role as one message: many templates insist that roles take turns.

    Results of tools stay apart, because each answers its own call.
    """
    joined: list[dict[str, Any]] = []
    for each in messages:
        before = joined[-1] if joined else None
        if before is None or before["role"] != each["role"] or each["role"] == "tool":
            joined.append(each)
            continue
        content = "\n".join(text for text in (before["content"], each["content"]) if text)
        calls = [*before.get("tool_calls", ()), *each.get("tool_calls", ())]
        joined[-1] = {"role": each["role"], "content": content}
        if calls:
            joined[-1]["tool_calls"] = calls
    return joined


def _split(messages: Sequence[dict[str, Any]], role: str) -> list[list[dict[str, Any]]]:
    """Parts that begin with a message of `role`; the first with whatever it is."""
    parts: list[list[dict[str, Any]]] = []
    for each in messages:
        if each["role"] == role or not parts:
            parts.append([])
        parts[-1].append(each)
    return parts


def _checked(message: Any) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, Mapping) else None
    content = message.get("content") if role in _ROLES else None
    if role not in _ROLES or not isinstance(content, str | None) or set(message) - _KEYS:
        raise ConfigError(
            f"{message!r} is not a message. Pass dictionaries with role (system, user, assistant "
            "or tool) and content (a text), and perhaps tool_calls, tool_call_id and name."
        )
    checked: dict[str, Any] = {"role": role, "content": ""}
    if content is not None and content.strip():
        checked["content"] = clean_text(content)
    if calls := message.get("tool_calls"):
        checked["tool_calls"] = [_call(each) for each in calls]
    if role == "tool":
        checked["tool_call_id"] = _call_id(str(message.get("tool_call_id") or ""))
        checked["name"] = str(message.get("name") or "")
    return checked


def _call(call: Any) -> dict[str, Any]:
    try:
        name, arguments, id_ = str(call["name"]), dict(call["arguments"]), str(call.get("id") or "")
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ConfigError(
            f'{call!r} is not a tool call. Pass {{"id": "...", "name": "...", "arguments": {{}}}}.'
        ) from None
    function = {"name": name, "arguments": arguments}
    return {"type": "function", "id": _call_id(id_), "function": function}


def _call_id(given: str) -> str:
    """The id, or nine hexadecimal digits that stand for it wherever it occurs."""
    if _CALL_ID.fullmatch(given):
        return given
    return hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:9]
