"""Tools: what a caller may pass, how a model writes a call, and how a call is read back.

In: tools as OpenAI function dictionaries, the model's own words. Out: names with the schemas of
their arguments, and :class:`ToolCall` records. Calls are JSON, `{"name": ..., "arguments": {...}}`,
bare or inside `<tool_call>...</tool_call>`. Knows no grammar and no chat template.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from memlong_agent.errors import ConfigError
from memlong_agent.memlong.chat_text import ReplyText
from memlong_agent.records import ToolCall

CHOICES = ("auto", "none", "any")
Parsed = tuple[str, tuple[ToolCall, ...]]
"""What is said beside the calls, and the calls."""
_MARK, _END = "<tool_call>", "</tool_call>"
_MARKED = re.compile(rf"\s*{_MARK}\s*(.*?)\s*{_END}", re.DOTALL)
_BETWEEN = re.compile(r"[\s,;]*")
_ARGUMENTS = ("arguments", "parameters")


def functions(tools: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Schemas of arguments by name. Raises ConfigError for what is not a tool."""
    found: dict[str, dict[str, Any]] = {}
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            raise ConfigError(
                f'{tool!r} is not a tool. Pass {{"type": "function", "function": {{"name": "...", '
                '"description": "...", "parameters": {...}}}.'
            )
        if name in found:
            raise ConfigError(f"Two tools are called {name!r}. Give each its own name.")
        found[name] = dict(function.get("parameters") or {})
    return found


def choose(
    known: Mapping[str, Mapping[str, Any]], choice: str
) -> dict[str, Mapping[str, Any]] | None:
    """The functions of which one must be called; None when no call is forced.

    Raises ConfigError for the name of no tool, and when a call is forced without tools.
    """
    if choice in ("auto", "none"):
        return None
    if choice == "any" and known:
        return dict(known)
    if choice not in known:
        names = ", ".join([*CHOICES, *known])
        raise ConfigError(f"tool_choice={choice!r} names no tool that was passed. Use: {names}.")
    return {choice: known[choice]}


def read_calls(text: str, names: Collection[str]) -> Parsed:
    """The calls in a reply, if it makes any; else the whole text, and none.

    A reply makes calls when it holds marked ones, or consists of nothing else. A call of a name
    that is not among `names`, or without an object of arguments, leaves it as text.
    """
    marked = _MARKED.findall(text)
    documents = [value for each in marked for value in _documents(each) or [None]]
    said = _MARKED.sub("", text)
    if not marked:
        documents, said = _documents(text) or [], ""
    calls = [_call(each, names) for each in documents]
    if not calls or None in calls:
        return text, ()
    return said, tuple(call for call in calls if call is not None)


def from_template(message: Mapping[str, Any], names: Collection[str]) -> Parsed | None:
    """What the tokenizer's own parser made of a reply; None if that holds no usable call."""
    found = [_call(each.get("function", each), names) for each in message.get("tool_calls") or ()]
    if not found or None in found:
        return None
    return str(message.get("content") or ""), tuple(call for call in found if call is not None)


class CallingText(ReplyText):
    """Text of a reply that may make calls: what may be one is held back until it is certain."""

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str],
        read: Callable[[str, Sequence[int]], Parsed],
        *,
        hold: bool,
    ) -> None:
        super().__init__(tokenizer, stop)
        self._read, self._hold = read, hold
        self._ids: list[int] = []
        self._given = ""  # of what is certain, the part that went out

    def push(self, token: int) -> str:
        self._ids.append(token)
        super().push(token)
        certain = len(self.text) if not self._hold else 0
        return self._out(self.text[: min(certain, _plain_until(self.text))])

    def finish(self) -> str:
        super().finish()
        self.text, self.calls = self._read(self.text, self._ids)
        return self._out(self.text) if self.text.startswith(self._given) else ""

    def _out(self, text: str) -> str:
        piece = text[len(self._given) :]
        self._given += piece
        return piece


def _plain_until(text: str) -> int:
    """Length of the beginning that cannot belong to a call."""
    begun = text.lstrip()
    if not begun or begun[0] in "{[":
        return 0
    at = text.find(_MARK)
    if at < 0:
        sizes = range(min(len(_MARK) - 1, len(text)), 0, -1)
        at = len(text) - next((size for size in sizes if text.endswith(_MARK[:size])), 0)
    return len(text[:at].rstrip())


def _documents(text: str) -> list[Any] | None:
    """The JSON values that a text consists of, lists opened; None if it is anything else."""
    decoder, found, at = json.JSONDecoder(), [], 0
    text = text.strip()
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        found += value if isinstance(value, list) else [value]
        between = _BETWEEN.match(text, at)
        at = between.end() if between else at
    return found


def _call(value: Any, names: Collection[str]) -> ToolCall | None:
    if not isinstance(value, Mapping) or value.get("name") not in names:
        return None
    arguments: Any = next((value[key] for key in _ARGUMENTS if key in value), {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    if not isinstance(arguments, Mapping):
        return None
    return ToolCall(id=uuid.uuid4().hex[:9], name=value["name"], arguments=dict(arguments))
