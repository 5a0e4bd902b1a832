"""`Memory` with the block: old turns go into the bank once, and come back under any LLM."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.bridge.pydantic import Field
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import (
    ChatMessage,
    CompletionResponse,
    CompletionResponseGen,
    CustomLLM,
    LLMMetadata,
)
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.llms.memlong import MemLongLLM, MemLongMemoryBlock

from memlong_agent import ConfigError

TOLD = "My dog is called Rex."
FILLER = [f"I have read book number {number} of the long shelf." for number in range(1, 6)]
ASKED = "What is my dog called?"
SHORT = {"token_limit": 80, "token_flush_size": 20}  # two turns or three stay


class Foreign(CustomLLM):
    """Somebody else's LLM: answers "Fine." and keeps the prompts it was given."""

    prompts: list[str] = Field(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="foreign")

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self.prompts.append(prompt)
        return CompletionResponse(text="Fine.")

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        raise NotImplementedError


def foreign_block(llm: MemLongLLM, user: str | None) -> MemLongMemoryBlock:
    return MemLongMemoryBlock(bank=llm.bank, options=llm.options, user_id=user)


def exchange(question: str, answer: str) -> list[ChatMessage]:
    return [
        ChatMessage(role="user", content=question),
        ChatMessage(role="assistant", content=answer),
    ]


def test_turns_that_leave_the_short_memory_are_written_once(
    llm: MemLongLLM, user: str, questions: Any, open_memory: Any, recorder: Any
) -> None:
    bound = llm.with_session("chat", user)
    memory = open_memory("chat", MemLongMemoryBlock(llm=bound), **SHORT)
    engine = SimpleChatEngine.from_defaults(llm=bound, memory=memory)
    for text in [TOLD, *FILLER]:
        engine.chat(text)
    assert len(memory.get()) < len(memory.get_all()), "something has left the short memory"
    engine.chat(ASKED)
    assert any(text.startswith(TOLD) for text in recorder.recalled()), "not in the attention"
    prompts = [message.content for event in recorder.started() for message in event.messages]
    assert TOLD in prompts and not any("<memory" in text for text in prompts), "not as text"
    assert questions(user) == [TOLD, *FILLER, ASKED]
    assert asyncio.run(memory.memory_blocks[0].aget(memory.get(), session_id="chat")) == ""


def test_the_block_writes_what_the_llm_did_not(
    llm: MemLongLLM, user: str, questions: Any, open_memory: Any, recorder: Any
) -> None:
    silent = llm.with_session("chat", user, write="off")
    memory = open_memory("chat", MemLongMemoryBlock(llm=silent), **SHORT)
    engine = SimpleChatEngine.from_defaults(llm=silent, memory=memory)
    for text in [TOLD, *FILLER]:
        engine.chat(text)
    left = len(memory.get_all()) // 2 - len(memory.get()) // 2
    assert 0 < left < len(FILLER)
    assert questions(user) == [TOLD, *FILLER][:left]
    engine.chat(ASKED)
    assert any(text.startswith(TOLD) for text in recorder.recalled())


def test_under_another_llm_the_memory_comes_back_as_text(
    llm: MemLongLLM, user: str, questions: Any, open_memory: Any
) -> None:
    foreign = Foreign()
    memory = open_memory("chat", foreign_block(llm, user), **SHORT)
    engine = SimpleChatEngine.from_defaults(llm=foreign, memory=memory)
    for text in [TOLD, *FILLER]:
        engine.chat(text)
    assert questions(user)[0] == TOLD
    engine.chat(ASKED)
    assert "<memlong>" in foreign.prompts[-1] and TOLD in foreign.prompts[-1]
    assert foreign.prompts[-1].count(TOLD) == 1
    in_window = memory.get()[-2].content
    assert foreign.prompts[-1].count(str(in_window)) == 1, "what the prompt holds is not repeated"


def test_one_block_keeps_two_sessions_apart(llm: MemLongLLM, user: str) -> None:
    """One vector block used for two sessions answered with the first one's text (llama_index
    issue 22701)."""
    block = foreign_block(llm, None)

    async def scene() -> tuple[str, str]:
        await block.aput(exchange(TOLD, "Noted."), session_id=f"{user}-a")
        asked = [ChatMessage(role="user", content=ASKED)]
        mine = await block.aget(asked, session_id=f"{user}-a")
        return mine, await block.aget(asked, session_id=f"{user}-b")

    mine, other = asyncio.run(scene())
    assert "Rex" in mine and other == ""


def test_only_what_people_said_is_written(llm: MemLongLLM, user: str, texts: Any) -> None:
    block = foreign_block(llm, user)
    call = ToolCallBlock(tool_call_id="1", tool_name="look", tool_kwargs={"at": "sky"})
    turn = [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="How is the sky?"),
        ChatMessage(role="assistant", blocks=[call]),
        ChatMessage(role="tool", content="blue", additional_kwargs={"tool_call_id": "1"}),
        ChatMessage(role="assistant", content="It is blue."),
        ChatMessage(role="user", content="Nobody answered this."),
    ]
    for _ in range(2):
        asyncio.run(block.aput(list(turn), session_id="chat"))
    assert texts(user) == ["User: How is the sky?\nAssistant: It is blue.", "Nobody answered this."]


@pytest.mark.parametrize("foreign", [True, False])
def test_a_later_reply_to_the_same_words_is_kept_where_no_llm_writes(
    foreign: bool, llm: MemLongLLM, user: str, texts: Any
) -> None:
    silent = llm.with_session("chat", user, write="off")
    block = foreign_block(llm, user) if foreign else MemLongMemoryBlock(llm=silent)
    said = [*exchange("Yes.", "Good."), *exchange("Yes.", "Very good.")]
    asyncio.run(block.aput(said, session_id="chat"))
    assert len(texts(user)) == 2


def test_an_earlier_answer_to_the_same_question_is_given(llm: MemLongLLM, user: str) -> None:
    """The prompt shows the question, but not what was answered then."""
    block = foreign_block(llm, user)
    asked = "What is a good name for my dog?"
    asyncio.run(block.aput(exchange(asked, "How about Rex?"), session_id="before"))
    shown = [ChatMessage(role="user", content=asked)]
    assert "How about Rex?" in asyncio.run(block.aget(shown, session_id="now"))
    shown = [*exchange(asked, "How about Rex?"), *shown]
    assert asyncio.run(block.aget(shown, session_id="now")) == ""


def test_a_block_refuses_the_memory_of_another_session(llm: MemLongLLM, user: str) -> None:
    block = MemLongMemoryBlock(llm=llm.with_session("mine", user))
    with pytest.raises(ConfigError, match=r"'mine'.*'theirs'.*session_id='mine'"):
        asyncio.run(block.aput(exchange(TOLD, "Noted."), session_id="theirs"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"bnk": "x"}, "Did you mean 'bank'"),
        ({"top_k": 0}, "top_k"),
        ({"llm": MemLongLLM(bank=":memory:"), "bank": "x"}, "Pass llm alone"),
        ({"llm": "gpt"}, "llm="),
        ({}, "There is no bank"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEMLONG_BANK", raising=False)
    with pytest.raises(ConfigError, match=says):
        MemLongMemoryBlock(**arguments)
