"""One reply to an explicit list of messages: the way in for frameworks that keep the history.

In: messages that are the whole prompt, whose memory to use, perhaps tools or a JSON schema. Out: a
stream. No live window of a session is read or changed; at most one exchange is written, what the
user said last and the final reply.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from memlong_agent.engine import Constraint, Engine, LiveWindow
from memlong_agent.errors import ConfigError
from memlong_agent.memlong.chat_text import CallStyle, ChatText, ReplyText
from memlong_agent.memlong.messages import Conversation
from memlong_agent.memlong.stream import FairLock, Stream
from memlong_agent.memlong.tool_calls import (
    CallingText,
    Parsed,
    choose,
    from_template,
    functions,
    read_calls,
)
from memlong_agent.memlong.turn import Turn, Turns
from memlong_agent.records import Reply

Schema = Mapping[str, Any] | Literal["json"]
_ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the reply may be: free text, tool calls, JSON of a schema."""

    tools: Sequence[Mapping[str, Any]]
    known: dict[str, dict[str, Any]]
    """Schemas of the arguments of every tool that may be called."""
    forced: dict[str, Mapping[str, Any]] | None
    """The functions of which one must be called."""
    schema: Mapping[str, Any] | None

    @classmethod
    def checked(
        cls, tools: Sequence[Mapping[str, Any]], choice: str, schema: Schema | None
    ) -> Wanted:
        """Raises ConfigError for tools, a choice or a schema of another form."""
        known = functions(tools)
        forced = choose(known, choice)
        if schema not in (None, "json") and not isinstance(schema, Mapping):
            raise ConfigError(f'schema={schema!r}: pass a JSON schema, or "json" for any object.')
        fits = _ANY_OBJECT if isinstance(schema, str) else schema
        return cls(tools, {} if choice == "none" else known, forced, fits)

    @property
    def constrained(self) -> bool:
        return self.forced is not None or self.schema is not None


def respond(
    engine: Engine,
    turns: Turns,
    conversation: Conversation,
    turn: Turn,
    wanted: Wanted,
    order: FairLock | None,
) -> Stream:
    """The reply as a stream that has not begun; `order` is its session's, if it writes."""
    pieces = _Call(engine, turns, conversation, turn, wanted).run()
    return Stream(pieces if order is None else order.run(pieces), lane=order)


@dataclass(frozen=True, slots=True)
class _Call:
    engine: Engine
    turns: Turns
    conversation: Conversation
    turn: Turn
    wanted: Wanted

    def run(self) -> Generator[str, None, Reply]:
        text = ChatText(self.engine, self.wanted.tools)
        style = CallStyle()
        if self.wanted.constrained and self.wanted.known:
            style = text.call_style()
        window = self._window(text, style.opening if self.wanted.forced else "")
        constraint = self._constraint(style.arguments)
        reply = self._reply(text, window)
        return (yield from self.turns.run(self.turn, window, reply, constraint))

    def _window(self, text: ChatText, opening: str) -> LiveWindow:
        """The prompt; the oldest messages leave it whole when it is too long."""
        asked, limit = self.conversation, self.engine.placement.window_tokens

        def prompt(without: int) -> tuple[list[int], list[int]]:
            return text.prompt(asked.system, asked.without(without), opening)

        left = self.turn.fit(prompt, asked.leaving, limit)
        return LiveWindow(*prompt(left), limit)

    def _constraint(self, arguments: str) -> Constraint | None:
        wanted = self.wanted
        if not wanted.constrained:
            return None
        calls = wanted.known if wanted.forced is None else wanted.forced
        schema = wanted.schema if wanted.forced is None else None
        return self.engine.vocabulary.constraint(calls, schema, arguments=arguments)

    def _reply(self, text: ChatText, window: LiveWindow) -> ReplyText:
        tokenizer, wanted = self.engine.tokenizer, self.wanted
        # A stop string inside JSON would cut it; the grammar knows where the reply ends.
        stop = () if wanted.constrained else (*self.turn.sampling.stop, *text.stop)
        if not wanted.known:
            return ReplyText(tokenizer, stop)
        parses = getattr(tokenizer, "response_template", None) is not None
        prompt_ids = list(window.ids)

        def read(said: str, ids: Sequence[int]) -> Parsed:
            if parses and not wanted.constrained:
                with suppress(Exception):  # a foreign parser, on whatever a model may say
                    message = tokenizer.parse_response(
                        list(ids), prefix=prompt_ids, tools=list(wanted.tools)
                    )
                    if parsed := from_template(message, wanted.known):
                        return parsed
            return read_calls(said, wanted.known)

        return CallingText(tokenizer, stop, read, hold=parses or wanted.forced is not None)
