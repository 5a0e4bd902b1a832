"""What the tests of this folder share that is no fixture."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.base import BaseEvent
from llama_index.core.llms import ChatMessage
from llama_index.llms.memlong import MemLongLLM


def says(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


def responses(llm: MemLongLLM, way: str, *arguments: Any, **kwargs: Any) -> list[Any]:
    """All responses of one call, whichever way it is made."""
    if not way.startswith("a"):
        found = getattr(llm, way)(*arguments, **kwargs)
        return list(found) if "stream" in way else [found]

    async def asynchronously() -> list[Any]:
        found = await getattr(llm, way)(*arguments, **kwargs)
        return [each async for each in found] if "stream" in way else [found]

    return asyncio.run(asynchronously())


class Recorder(BaseEventHandler):
    """Keeps every event of LlamaIndex's instrumentation."""

    seen: list[Any] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.seen.append(event)

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.seen]

    def started(self) -> list[Any]:
        """The calls that have begun, with their messages."""
        return [event for event in self.seen if type(event).__name__ == "LLMChatStartEvent"]

    def recalled(self) -> list[str]:
        """Texts that the calls which have ended since recalled."""
        ended = [event for event in self.seen if type(event).__name__ == "LLMChatEndEvent"]
        found = [event.response.raw["memlong"]["recalls"] for event in ended]
        return [recall["text"] for recalls in found for recall in recalls]
