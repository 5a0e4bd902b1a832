"""Between messages and token ids: the model's chat template, and text out of a stream of ids.

In: messages as text. Out: the ids of a prompt, split into the part that always stays (BOS, system)
and the rest; pieces of reply text, cut at characters and held back while a stop string may begin.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tokenizers.decoders import DecodeStream

from memlong_agent.engine import Engine
from memlong_agent.errors import ConfigError
from memlong_agent.memlong.messages import merged
from memlong_agent.records import ToolCall

Message = tuple[str, str]  # role, content
_ABSTAINS = re.compile(
    r"\W*(?:(?:i'?m )?sorry[,.!]? (?:but )?)?"
    r"(?:i (?:do not|don'?t|can'?t|cannot) (?:know|recall|remember"
    r"|have (?:any |that |this )?(?:information|memory|record))"
    r"|i'?m not (?:sure|aware)|you (?:have not|haven'?t|did not|didn'?t) (?:told|tell|mention))",
    re.IGNORECASE,
)
_PLAIN_STOP = "\nUser:"
_TOOLS, _CALL = "Tools: ", '\nTo call one, answer only {"name": "...", "arguments": {...}}.'
_SAID = "said-by-the-user"
_PROBE = {
    "type": "function",
    "id": "probe0000",
    "function": {"name": "probe_tool", "arguments": {"probe": 1}},
}
_PROBED = re.compile(r'\{"name": "probe_tool", "(\w+)": \{')


def abstained(reply: str) -> bool:
    """Whether a reply says that the model does not know; such a reply is not worth recalling."""
    return _ABSTAINS.match(reply) is not None


@dataclass(frozen=True, slots=True)
class CallStyle:
    """How the model's template writes a tool call."""

    opening: str = ""
    """What stands between the begin of the reply and the call's JSON."""
    arguments: str = "arguments"
    """The JSON key of the arguments."""


class ChatText:
    """Renders messages with the tokenizer's chat template, or as plain text if it has none.

    With `tools` the prompt lists them: as the template does, or in the system prompt if the
    template does not know tools. Raises ConfigError for messages that the template refuses.
    """

    def __init__(self, engine: Engine, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._engine = engine
        self._tokenizer = engine.tokenizer
        self._template = str(getattr(engine.tokenizer, "chat_template", None) or "")
        self._native = "tools" in self._template
        neutral_tools = [self._neutral(each) for each in tools]
        self._tools = neutral_tools if self._native else []
        self._listed = (
            "" if self._native or not tools else _TOOLS + json.dumps(neutral_tools) + _CALL
        )

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop strings that every reply needs."""
        return () if self._template else (_PLAIN_STOP,)

    def prompt(
        self, system: str, messages: Sequence[Message | Mapping[str, Any]], opening: str = ""
    ) -> tuple[list[int], list[int]]:
        """Ids of what always stays (BOS, system prompt, tools), and of the rest up to the reply.

        The reply begins with `opening`.
        """
        turns = self._turns(messages)
        text = self._render(system, turns, reply=True)
        head = self._head(system, text)
        return self._ids(head), self._ids(text[len(head) :] + opening)

    def call_style(self) -> CallStyle:
        """Learned from what the template makes of a call; the plain one if it makes none."""
        asked = {"role": "user", "content": _SAID}
        called = {"role": "assistant", "content": "", "tool_calls": [_PROBE]}
        try:
            before = self._render("", [asked], reply=True)
            whole = self._render("", [asked, called], reply=False)
        except ConfigError:
            return CallStyle()
        found = _PROBED.search(whole, len(before)) if whole.startswith(before) else None
        return CallStyle(whole[len(before) : found.start()], found[1]) if found else CallStyle()

    def _head(self, system: str, text: str) -> str:
        alone = ""
        if system or self._tools or self._listed:
            # A template may refuse a lone system message in its own words.
            with suppress(ConfigError):
                alone = self._render(system, [], reply=False)
            if not alone and self._tools:
                shown = self._render(system, [{"role": "user", "content": _SAID}], reply=False)
                # A space before what is said belongs to its first word's token.
                alone = shown[: shown.rindex(_SAID)].rstrip(" ")
        if alone and text.startswith(alone):
            return alone
        bos = self._tokenizer.bos_token or ""
        return bos if text.startswith(bos) else ""

    def _turns(self, messages: Sequence[Message | Mapping[str, Any]]) -> list[dict[str, Any]]:
        turns = [
            {"role": each[0], "content": each[1]} if isinstance(each, tuple) else dict(each)
            for each in messages
        ]
        turns = [self._neutral(each) for each in turns]
        if self._native or not self._template:
            return turns
        return merged([_without_tools(each) for each in turns])

    def _render(self, system: str, turns: Sequence[dict[str, Any]], *, reply: bool) -> str:
        system = "\n".join(text for text in (self._engine.neutral(system), self._listed) if text)
        dicts = [{"role": "system", "content": system}] if system else []
        dicts += turns
        if not self._template:
            lines = [_line(each) for each in dicts]
            bos = self._tokenizer.bos_token or ""
            return bos + "".join(lines) + ("Assistant:" if reply else "")
        plain = merged([_without_tools(each) for each in dicts])
        try:
            # Some templates refuse two calls at once, or the form of an id: then calls are text.
            with suppress(Exception):
                return self._templated(dicts, reply)
            return self._templated(plain, reply)
        except Exception as exc:  # a template refuses in its own words
            raise ConfigError(
                f"The model's chat template refuses these messages: {exc}. Send them in the order "
                "that the model expects."
            ) from exc

    def _templated(self, messages: Sequence[dict[str, Any]], reply: bool) -> str:
        rendered: str = self._tokenizer.apply_chat_template(
            messages, tools=self._tools or None, tokenize=False, add_generation_prompt=reply
        )
        return rendered

    def _neutral(self, value: Any) -> Any:
        """The value with every text in it neutral."""
        if isinstance(value, str):
            return self._engine.neutral(value)
        if isinstance(value, Mapping):
            return {self._neutral(name): self._neutral(each) for name, each in value.items()}
        return [self._neutral(each) for each in value] if isinstance(value, list | tuple) else value

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return list(found)


def _without_tools(message: dict[str, Any]) -> dict[str, Any]:
    """The message in roles and words that every template knows."""
    if message["role"] == "tool":
        name = f" of {message['name']}" if message.get("name") else ""
        return {"role": "user", "content": f"Result{name}: {message['content']}"}
    calls = [json.dumps(each["function"]) for each in message.get("tool_calls", ())]
    said = [message["content"]] if message["content"] else []
    return {"role": message["role"], "content": "\n".join([*said, *calls])}


def _line(message: dict[str, Any]) -> str:
    shown = _without_tools(message) if message["role"] == "assistant" else message
    return f"{message['role'].capitalize()}: {shown['content']}\n"


class ReplyText:
    """Text of a reply as its ids arrive. `stopped` once a stop string has ended it."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.text = ""
        self.stopped = False
        self.calls: tuple[ToolCall, ...] = ()

    def push(self, token: int) -> str:
        """New text that is certain now, perhaps none."""
        # A NUL cannot be stored, and a byte-level model may say one.
        self._held += (self._decoder.step(self._tokenizer, token) or "").replace("\0", "")
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return self._give(min(found))
        return self._give(len(self._held) - self._may_stop())

    def finish(self) -> str:
        """What was held back, when the reply ended without a stop string."""
        return "" if self.stopped else self._give(len(self._held))

    def _give(self, length: int) -> str:
        piece, self._held = self._held[:length], self._held[length:]
        self.text += piece
        return piece

    def _may_stop(self) -> int:
        """Length of the longest held end that begins a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(1, min(len(stop), len(self._held) + 1)):
                if self._held.endswith(stop[:size]):
                    longest = max(longest, size)
        return longest
