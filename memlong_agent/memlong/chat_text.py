"""Between messages and token ids: the model's chat template, and text out of a stream of ids.

In: messages as text. Out: the ids of a prompt, split into the part that always stays (BOS, system)
and the rest; pieces of reply text, cut at characters and held back while a stop string may begin.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

from memlong_agent.engine import Engine

Message = tuple[str, str]  # role, content
_ABSTAINS = re.compile(
    r"\W*(?:(?:i'?m )?sorry[,.!]? (?:but )?)?"
    r"(?:i (?:do not|don'?t|can'?t|cannot) (?:know|recall|remember"
    r"|have (?:any |that |this )?(?:information|memory|record))"
    r"|i'?m not (?:sure|aware)|you (?:have not|haven'?t|did not|didn'?t) (?:told|tell|mention))",
    re.IGNORECASE,
)
_PLAIN_STOP = "\nUser:"


def abstained(reply: str) -> bool:
    """Whether a reply says that the model does not know; such a reply is not worth recalling."""
    return _ABSTAINS.match(reply) is not None


class ChatText:
    """Renders messages with the tokenizer's chat template, or as plain text if it has none."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokenizer = engine.tokenizer
        self._templated = bool(getattr(engine.tokenizer, "chat_template", None))

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop strings that every reply needs."""
        return () if self._templated else (_PLAIN_STOP,)

    def prompt(
        self, system: str, messages: Sequence[Message | Mapping[str, Any]]
    ) -> tuple[list[int], list[int]]:
        """Ids of what always stays (BOS, system prompt), and of the rest up to the reply."""
        text = self._render(system, messages, reply=True)
        head = self._head(system, text)
        return self._ids(head), self._ids(text[len(head) :])

    def _head(self, system: str, text: str) -> str:
        alone = self._render(system, [], reply=False) if system else ""
        if alone and text.startswith(alone):
            return alone
        bos = self._tokenizer.bos_token or ""
        return bos if text.startswith(bos) else ""

    def _render(
        self, system: str, messages: Sequence[Message | Mapping[str, Any]], *, reply: bool
    ) -> str:
        neutral = self._engine.neutral
        turns = [("system", system)] if system else []
        turns += [
            each if isinstance(each, tuple) else (each["role"], each["content"])
            for each in messages
        ]
        if not self._templated:
            lines = [f"{role.capitalize()}: {neutral(content)}\n" for role, content in turns]
            return (
                (self._tokenizer.bos_token or "") + "".join(lines) + ("Assistant:" if reply else "")
            )
        dicts = [{"role": role, "content": neutral(content)} for role, content in turns]
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                dicts, tokenize=False, add_generation_prompt=reply
            )
        except Exception:  # a template may refuse a lone system message in its own words
            if messages:
                raise
            return ""
        return rendered

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return list(found)


class ReplyText:
    """Text of a reply as its ids arrive. `stopped` once a stop string has ended it."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """New text that is certain now, perhaps none."""
        self._held += self._decoder.step(self._tokenizer, token) or ""
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
