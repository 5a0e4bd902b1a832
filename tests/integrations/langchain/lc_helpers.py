"""What the LangChain tests say and look at."""

from __future__ import annotations

from typing import Any

from memlong_agent import MemLong, Memory

PLACE: dict[str, Any] = {"bank": ":memory:", "options": {"embedder": "hash"}}
TOLD, ASKED, ANSWER = "My dog is called Rex.", "What is my dog called?", "Rex"


def of(user: str | None = None, session: str | None = None, **more: str) -> dict[str, Any]:
    """A config that names a user and a session."""
    ids = {"user_id": user, "session_id": session, **more}
    return {"configurable": {name: value for name, value in ids.items() if value is not None}}


def exchanges(engine: MemLong, user: str) -> list[Memory]:
    """What a user's turns wrote, oldest first."""
    return engine.memories(user_id=user).list()[::-1]


def said(engine: MemLong, user: str) -> list[str]:
    """What a user said in those turns."""
    texts = [memory.text for memory in exchanges(engine, user)]
    return [text.removeprefix("User: ").partition("\nAssistant: ")[0] for text in texts]


def recalls(message: Any) -> list[str]:
    """Texts that a reply recalled."""
    return [recall["text"] for recall in message.response_metadata["memlong"]["recalls"]]
