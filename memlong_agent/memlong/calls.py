"""One reply to an explicit list of messages: the way in for frameworks that keep the history.

In: messages that are the whole prompt, whose memory to use, perhaps tools or a JSON schema. Out: a
stream. No live window of a session is read or changed; at most one exchange is written, what the
user said last and the final reply.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import nullcontext
from dataclasses import dataclass

from memlong_agent.engine import Engine, LiveWindow
from memlong_agent.memlong.chat_text import ChatText, ReplyText
from memlong_agent.memlong.messages import Conversation
from memlong_agent.memlong.stream import FairLock, Stream
from memlong_agent.memlong.turn import Turn, Turns
from memlong_agent.records import Reply


@dataclass(frozen=True, slots=True)
class Call:
    """What one call asks for, checked."""

    conversation: Conversation
    turn: Turn


def respond(engine: Engine, turns: Turns, call: Call, order: FairLock | None) -> Stream:
    """The call as a stream that has not begun; `order` is its session's, if it writes."""
    return Stream(_run(engine, turns, call, order), lane=order)


def _run(
    engine: Engine, turns: Turns, call: Call, order: FairLock | None
) -> Generator[str, None, Reply]:
    with nullcontext() if order is None else order.held():
        text = ChatText(engine)
        window = _window(text, call, engine.placement.window_tokens)
        reply = ReplyText(engine.tokenizer, (*call.turn.sampling.stop, *text.stop))
        return (yield from turns.run(call.turn, window, reply))


def _window(text: ChatText, call: Call, limit: int) -> LiveWindow:
    """The prompt; the oldest messages leave it whole when it is too long."""
    system, messages = call.conversation.system, call.conversation.messages

    def prompt(without: int) -> tuple[list[int], list[int]]:
        # A result whose call has left would answer nothing: templates refuse it.
        while without < len(messages) - 1 and messages[without]["role"] == "tool":
            without += 1
        return text.prompt(system, messages[without:])

    left = call.turn.fit(prompt, len(messages), limit)
    return LiveWindow(*prompt(left), limit)
