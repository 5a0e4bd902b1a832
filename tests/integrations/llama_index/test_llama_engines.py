"""Chat engines: three kinds, four ways to call, two people on one engine who never meet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.llms.memlong import MemLongLLM, MemLongMemoryBlock

TOLD, OTHER, ASKED = "My dog is called Rex.", "My cat is called Tom.", "What is my dog called?"
DOCUMENT = "The library opens at nine."
KINDS = ("simple", "context", "condense")
Open = Callable[..., BaseChatEngine]
MODES = ("chat", "stream_chat", "achat", "astream_chat")


class Library(BaseRetriever):
    """A retriever that always finds the same document."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text=DOCUMENT), score=1.0)]


@pytest.fixture
def open_engine(open_memory: Any) -> Open:
    """A chat engine on a handle, with LlamaIndex's memory and the block."""

    def open_(kind: str, llm: MemLongLLM, **options: Any) -> BaseChatEngine:
        block = MemLongMemoryBlock(llm=llm)
        memory = open_memory(llm.session_id, block, token_limit=500, **options)
        if kind == "simple":
            return SimpleChatEngine.from_defaults(llm=llm, memory=memory)
        made = ContextChatEngine if kind == "context" else CondensePlusContextChatEngine
        return made.from_defaults(retriever=Library(), llm=llm, memory=memory)

    return open_


def talk(engine: BaseChatEngine, mode: str, text: str) -> str:
    if mode == "chat":
        return str(engine.chat(text))
    if mode == "stream_chat":
        return "".join(engine.stream_chat(text).response_gen)

    async def asynchronously() -> str:
        if mode == "achat":
            return str(await engine.achat(text))
        streamed = await engine.astream_chat(text)
        return "".join([piece async for piece in streamed.async_response_gen()])

    return asyncio.run(asynchronously())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_people_talk_through_one_engine(
    kind: str,
    mode: str,
    llm: MemLongLLM,
    user: str,
    questions: Any,
    recorder: Any,
    open_engine: Open,
) -> None:
    alice, bob = f"{user}-alice", f"{user}-bob"
    first = open_engine(kind, llm.with_session("chat", alice))
    second = open_engine(kind, llm.with_session("chat", bob))
    assert talk(first, mode, TOLD)
    assert talk(second, mode, OTHER)
    assert "Rex" not in talk(second, mode, ASKED)
    assert not any("Rex" in text for text in recorder.recalled()), "alice's memory reached bob"

    # Each message once, word by word; the condense call and the document not at all.
    assert ("LLMCompletionStartEvent" in recorder.names()) == (kind == "condense")
    assert questions(alice) == [TOLD]
    assert questions(bob) == [OTHER, ASKED]

    later = open_engine(kind, llm.with_session("later", alice))
    answer = talk(later, mode, ASKED)
    assert any(text.startswith(TOLD) for text in recorder.recalled()), "not recalled later"
    assert kind != "simple" or "Rex" in answer  # the others wrap the question in much text
    assert questions(alice) == [TOLD, ASKED]


@pytest.mark.parametrize("mode", ["chat", "astream_chat"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_history_of_a_chat_is_written_once(
    kind: str, mode: str, llm: MemLongLLM, user: str, questions: Any, open_engine: Open
) -> None:
    engine = open_engine(kind, llm.with_session("chat", user))
    said = [TOLD, OTHER, ASKED, "I like tea."]
    for text in said:
        talk(engine, mode, text)
    talk(engine, mode, said[-1])  # a retry: the same text again replaces the reply
    assert questions(user) == said
    assert [message.content for message in engine.chat_history if message.role == "user"] == [
        *said,
        said[-1],
    ]


def test_a_session_without_a_user_is_private(
    llm: MemLongLLM, user: str, texts: Any, open_engine: Open
) -> None:
    engine = open_engine("simple", llm.with_session(user))
    talk(engine, "chat", TOLD)
    other = open_engine("simple", llm.with_session(f"{user}-2"))
    assert "Rex" not in talk(other, "chat", ASKED)
    assert len(texts(None, user)) == len(texts(None, f"{user}-2")) == 1


def test_a_bound_handle_that_only_reads_writes_nothing(
    llm: MemLongLLM, user: str, questions: Any, open_engine: Open
) -> None:
    talk(open_engine("context", llm.with_session("chat", user)), "chat", TOLD)
    reading = llm.with_session("chat", user, write="off")
    assert "Rex" in talk(open_engine("simple", reading), "chat", ASKED)
    assert questions(user) == [TOLD]


def test_history_with_citations_is_kept_and_sent_again(
    llm: MemLongLLM, user: str, tmp_path: Any, open_engine: Open
) -> None:
    """LlamaIndex keeps answers as JSON: citations must survive that and stay out of prompts."""
    bound = llm.with_session("chat", user)
    talk(open_engine("simple", bound), "chat", TOLD)
    uri = f"sqlite+aiosqlite:///{tmp_path / 'history.db'}"
    engine = open_engine("simple", llm.with_session("next", user), uri=uri)
    talk(engine, "chat", ASKED)
    cited = [block for block in engine.chat_history[-1].blocks if block.block_type == "citation"]
    assert cited and cited[0].cited_content.text.startswith(TOLD)
    again = open_engine("simple", llm.with_session("next", user), uri=uri)
    assert "Rex" in talk(again, "chat", "And what is my dog called?")
