"""One engine for all tests here, on memlong-tiny; every test brings users of its own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llama_helpers import Recorder
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.memory import BaseMemoryBlock, Memory
from llama_index.llms.memlong import MemLongLLM
from sqlalchemy.ext.asyncio import create_async_engine

_NUMBERS = itertools.count(1)
Texts = Callable[..., list[str]]


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemLongLLM]:
    bank = tmp_path_factory.mktemp("llama-index") / "bank"
    made = MemLongLLM(bank=bank, options={"embedder": "hash"}, max_tokens=16)
    yield made
    made.memlong.close()


@pytest.fixture
def user() -> str:
    """Nobody else's memory."""
    return f"user-{next(_NUMBERS)}"


@pytest.fixture
def texts(llm: MemLongLLM) -> Texts:
    """Texts of a user's (or a session's) memories, oldest first."""

    def texts_(user_id: str | None = None, session_id: str | None = None) -> list[str]:
        memories = llm.memlong.memories(user_id=user_id, session_id=session_id)
        return [memory.text for memory in reversed(memories.list(session_id=session_id))]

    return texts_


@pytest.fixture
def questions(texts: Texts) -> Texts:
    """What the user said in each memory, oldest first; all of it, and nothing but it."""

    def questions_(*whose: str | None) -> list[str]:
        said = [text.partition("\nAssistant: ")[0] for text in texts(*whose)]
        assert all(text.startswith("User: ") for text in said)
        return [text.removeprefix("User: ") for text in said]

    return questions_


@pytest.fixture(autouse=True)
def event_loop_of_this_thread() -> Iterator[None]:
    """LlamaIndex's sync calls use the thread's event loop, or make one that they never close."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()
    asyncio.set_event_loop(None)


@pytest.fixture
def open_memory() -> Iterator[Callable[..., Memory]]:
    """LlamaIndex's own `Memory`, which never closes its connections: they are closed here."""
    engines = []

    def open_(
        session_id: str,
        *blocks: BaseMemoryBlock[Any],
        uri: str = "sqlite+aiosqlite://",
        **more: Any,
    ) -> Memory:
        engines.append(create_async_engine(uri))
        return Memory.from_defaults(
            session_id, memory_blocks=list(blocks), async_engine=engines[-1], **more
        )

    yield open_
    for engine in engines:
        asyncio.run(engine.dispose())


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    root = get_dispatcher()
    root.add_event_handler(made)
    yield made
    root.event_handlers.remove(made)
