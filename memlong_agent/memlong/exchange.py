"""A finished exchange as the bank keeps it, whoever made the reply.

In: what was said, when, in which session. Out: a draft with its chunks encoded. When it is written
is decided by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from memlong_agent.chunking import exchange_chunks
from memlong_agent.engine import Engine
from memlong_agent.memlong.chat_text import Message, abstained
from memlong_agent.memory import Draft


def exchange(
    engine: Engine,
    said: Sequence[Message],
    at: datetime,
    *,
    session: str | None,
    message_id: str | None = None,
    pending: str | None = None,
) -> Draft:
    """The user's message and perhaps a reply; one that abstains is kept, but never recalled."""
    recallable = said[:1] if abstained(said[-1][1]) else said
    chunks = exchange_chunks(recallable, at, engine.tokenize, engine.settings.chunk_tokens)
    return Draft(
        role="exchange",
        text="\n".join(f"{role.capitalize()}: {content}" for role, content in said),
        chunks=engine.encode(chunks),
        session=session,
        messages=[{"role": role, "content": content} for role, content in said],
        message_id=None if pending else message_id,
        created_at=at,
        pending=pending,
    )
