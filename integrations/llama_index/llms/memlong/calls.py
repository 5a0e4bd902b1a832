"""One call of the model: its arguments, checked and merged, and the reply as LlamaIndex wants it.

In: how to come by the `MemLong`, messages, and arguments for `MemLong.respond`. Out: responses, one
per piece of text and a last one with everything, for a plain loop or for an async one. It knows no
engine and no fields of the LLM object. Nothing is loaded before the first piece is asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable, Mapping
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatResponse
from llama_index.llms.memlong.translate import piece_out, reply_out

from memlong_agent import ConfigError, Reply
from memlong_agent.memlong import Stream, background

if TYPE_CHECKING:
    from llama_index.core.base.llms.types import ChatResponseAsyncGen, ChatResponseGen

    from memlong_agent import MemLong

_WRITES = {"turn": True, "off": False}


@dataclass(frozen=True, slots=True)
class Call:
    """What one call asks for."""

    load: Callable[[], MemLong]
    """Gives the `MemLong`; may load weights, so it is called on a worker in async calls."""
    messages: list[dict[str, Any]]
    arguments: dict[str, Any]
    """For `MemLong.respond`."""
    lane: Hashable | None
    """Async calls of one lane are answered in the order in which they were begun."""
    citations: bool = True
    parallel: bool = True
    """Whether several tool calls in one reply are wanted."""

    def responses(self) -> ChatResponseGen:
        """The reply piece by piece; closing the generator cancels it, and nothing is written."""
        text = ""
        with closing(Stream(self._steps())) as stream:
            for piece in stream:
                text += piece
                yield piece_out(text, piece)
            last = self._last(stream.reply)
        yield last

    async def aresponses(self) -> ChatResponseAsyncGen:
        """The same, made on a worker thread: the event loop is never held up."""
        text = ""
        async with aclosing(background(Stream(self._steps(), lane=self.lane))) as stream:
            async for piece in stream:
                text += piece
                yield piece_out(text, piece)
            last = self._last(stream.reply)
        yield last

    def _steps(self) -> Generator[str, None, Reply]:
        """Token by token, also where a token says nothing yet, so that a cancellation is seen."""
        with closing(self.load().respond(self.messages, **self.arguments)) as stream:
            while True:
                try:
                    piece = stream.step()
                except StopIteration:
                    return stream.reply
                yield piece

    def _last(self, reply: Reply) -> ChatResponse:
        if not self.parallel and len(reply.tool_calls) > 1:
            reply = reply.replace(tool_calls=reply.tool_calls[:1])
        return reply_out(reply, citations=self.citations, delta="")


def respond_arguments(
    given: Mapping[str, Any], call: Mapping[str, Any], write: str
) -> dict[str, Any]:
    """Arguments of `MemLong.respond`: those of the LLM object, overridden by those of the call.

    `write` is "turn" or "off"; what is made to fit a `schema` is nobody's turn and never written.
    Raises ConfigError for any other `write`.
    """
    merged = {**given, **call}
    write = merged.pop("write", write)
    if write not in _WRITES:
        raise ConfigError(f'write={write!r} is neither "turn" nor "off". Pass one of these.')
    return {**merged, "write": _WRITES[write] and merged.get("schema") is None}


def whole(responses: ChatResponseGen) -> ChatResponse:
    """The last response, which holds everything."""
    return deque(responses, maxlen=1).pop()


async def awhole(responses: ChatResponseAsyncGen) -> ChatResponse:
    """The last response, which holds everything."""
    newest: deque[ChatResponse] = deque(maxlen=1)
    async with aclosing(responses):
        async for each in responses:
            newest.append(each)
    return newest.pop()
