"""The LLM object itself: eight ways to call it, what it reports, writes and refuses."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from llama_helpers import responses, says
from llama_index.core.base.llms.types import CitableBlock, CitationBlock, ImageBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage, ChatResponse
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.llms.memlong import MemLongLLM

from memlong_agent import ConfigError, UnsupportedModelError

TOLD, ASKED = "My dog is called Rex.", "What is my dog called?"
WAYS = ("chat", "stream_chat", "achat", "astream_chat")
COMPLETIONS = ("complete", "stream_complete", "acomplete", "astream_complete")


@pytest.mark.parametrize("way", WAYS)
def test_a_turn_is_written_before_the_call_is_over(
    way: str, llm: MemLongLLM, user: str, texts: Any
) -> None:
    bound = llm.with_session("chat", user)
    (*_, told) = responses(bound, way, says(TOLD))
    assert texts(user) == [f"User: {TOLD}\nAssistant: {told.message.content}"]
    assert told.raw["memlong"]["memory_ids"]
    (*pieces, answer) = responses(llm.with_session("next", user), way, says(ASKED))
    assert "Rex" in answer.message.content
    if "stream" in way:
        assert "".join(piece.delta for piece in pieces).strip() == answer.message.content
        assert [len(piece.message.content) for piece in pieces] == sorted(
            len(piece.message.content) for piece in pieces
        )


@pytest.mark.parametrize("way", COMPLETIONS)
def test_a_completion_reads_but_never_writes(
    way: str, llm: MemLongLLM, user: str, questions: Any
) -> None:
    bound = llm.with_session("chat", user)
    bound.chat(says(TOLD))
    (*_, answer) = responses(bound, way, ASKED)
    assert "Rex" in answer.text and answer.raw["usage"]["completion_tokens"] > 0
    assert answer.additional_kwargs["citations"][0].cited_content.text.startswith(TOLD)
    assert questions(user) == [TOLD]
    with pytest.raises(ConfigError, match="never written"):
        responses(bound, way, ASKED, write="turn")


@pytest.mark.parametrize("way", WAYS)
def test_without_a_session_the_memory_is_left_alone(
    way: str, llm: MemLongLLM, user: str, texts: Any
) -> None:
    llm.with_session("chat", user).chat(says(TOLD))
    before = llm.memlong.stats()
    (*_, answer) = responses(llm, way, says(ASKED))
    assert answer.raw["memlong"]["recalls"] == [] and "Rex" not in answer.message.content
    assert llm.memlong.stats() == before


@pytest.mark.parametrize("way", WAYS)
def test_usage_and_recalls_are_reported_however_the_call_is_made(
    way: str, llm: MemLongLLM, user: str
) -> None:
    llm.with_session("chat", user).chat(says(TOLD))
    (*_, answer) = responses(llm.with_session("next", user), way, says(ASKED))
    usage, memlong = answer.raw["usage"], answer.raw["memlong"]
    recalled = usage["prompt_tokens_details"]["cached_tokens"]
    assert 0 < recalled < usage["prompt_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < memlong["attention_mass"] < 1
    (recall,) = memlong["recalls"]
    assert recall["text"].startswith(TOLD) and recall["session_id"] == "chat"
    assert json.loads(json.dumps(answer.raw)) == answer.raw
    (cited,) = [block for block in answer.message.blocks if isinstance(block, CitationBlock)]
    assert cited.cited_content.text == recall["text"] and recall["memory_id"] in cited.title
    assert cited.source == "chat" and cited.additional_location_info == {"chunk": 0}


def test_citations_can_be_left_out(llm: MemLongLLM, user: str) -> None:
    plain = MemLongLLM(bank=llm.bank, options=llm.options, citations=False, max_tokens=16)
    plain.with_session("chat", user).chat(says(TOLD))
    answer = plain.with_session("next", user).chat(says(ASKED))
    assert [block.block_type for block in answer.message.blocks] == ["text"]
    assert answer.raw["memlong"]["recalls"]


def test_llamaindex_counts_tokens_by_what_is_reported(llm: MemLongLLM) -> None:
    counter = TokenCountingHandler()
    counted = llm.model_copy(update={"callback_manager": CallbackManager([counter])})
    (*_, answer) = counted.stream_chat(says("Hello"))
    assert counter.total_llm_token_count == answer.raw["usage"]["total_tokens"]


@pytest.mark.parametrize("way", WAYS + COMPLETIONS)
def test_instrumentation_sees_each_call_once(way: str, llm: MemLongLLM, recorder: Any) -> None:
    given = says("Hello") if way in WAYS else "Hello"
    got = responses(llm, way, given)
    names = recorder.names()
    kind = "LLMChat" if way in WAYS else "LLMCompletion"
    assert names.count(f"{kind}StartEvent") == names.count(f"{kind}EndEvent") == 1
    progress = len(got) if "stream" in way else 0
    assert names.count(f"{kind}InProgressEvent") == progress
    started = next(event for event in recorder.seen if type(event).__name__ == f"{kind}StartEvent")
    assert started.model_dict["model_name"] == "memlong-tiny"
    assert llm.bank not in json.dumps(started.model_dict)


def test_only_the_last_exchange_of_a_call_is_written(
    llm: MemLongLLM, user: str, texts: Any
) -> None:
    history = [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="An example question."),
        ChatMessage(role="assistant", content="An example answer."),
        *says(TOLD),
    ]
    bound = llm.with_session("chat", user)
    answers = [bound.chat(history).message.content for _ in range(3)]  # a client that retries
    assert texts(user) == [f"User: {TOLD}\nAssistant: {answers[-1]}"]


def test_what_stands_in_the_prompt_is_not_recalled(llm: MemLongLLM, user: str) -> None:
    bound = llm.with_session("chat", user)
    told = bound.chat(says(TOLD))
    answer = bound.chat([*says(TOLD), told.message, *says(ASKED)])
    assert answer.raw["memlong"]["recalls"] == [] and "Rex" in answer.message.content


def test_a_call_may_name_its_session_and_refuse_memory(
    llm: MemLongLLM, user: str, questions: Any
) -> None:
    llm.chat(says(TOLD), session_id="chat", user_id=user)
    whose = {"session_id": "next", "user_id": user, "write": "off"}
    assert "Rex" in llm.chat(says(ASKED), **whose).message.content
    assert "Rex" not in llm.chat(says(ASKED), memory=False, **whose).message.content
    assert questions(user) == [TOLD]


def test_too_long_a_prompt_is_never_silent(llm: MemLongLLM) -> None:
    history = [
        ChatMessage(role=role, content=f"{word} " * 300)
        for word in ("one", "two", "three")
        for role in ("user", "assistant")
    ]
    answer = llm.chat([*history, *says("Hello")])
    assert answer.raw["memlong"]["overflowed_tokens"] > 0


def test_predictions_only_read(llm: MemLongLLM, user: str, questions: Any) -> None:
    bound = llm.with_session("chat", user)
    bound.chat(says(TOLD))
    prompt = PromptTemplate("What is my {animal} called?")
    assert "Rex" in bound.predict(prompt, animal="dog")
    assert "Rex" in "".join(bound.stream(prompt, animal="dog"))
    assert "Rex" in asyncio.run(bound.apredict(prompt, animal="dog"))
    chat = ChatPromptTemplate.from_messages([("user", "Rephrase this: {query_str}")])
    bound.predict(chat, query_str=ASKED)
    assert questions(user) == [TOLD]


def test_messages_of_every_kind_are_understood(llm: MemLongLLM) -> None:
    call = ToolCallBlock(tool_call_id="abc", tool_name="look", tool_kwargs='{"at": "sky"}')
    cited = CitableBlock(title="Letter", source="a", content="The sky is blue.")
    answer = llm.chat(
        [
            ChatMessage(role="developer", content="Be brief."),
            ChatMessage(role="user", blocks=[cited]),
            ChatMessage(role="model", blocks=[call]),
            ChatMessage(role="function", content="blue", additional_kwargs={"tool_call_id": "abc"}),
            ChatMessage(role="chatbot", content=""),
            ChatMessage(role="assistant", content="It is blue."),
            *says("Thank you."),
        ]
    )
    assert isinstance(answer, ChatResponse) and answer.message.content


def test_a_picture_is_refused(llm: MemLongLLM) -> None:
    picture = ChatMessage(role="user", blocks=[ImageBlock(url="https://example.org/a.png")])
    with pytest.raises(ConfigError, match=r"text only.*ImageBlock"):
        llm.chat([picture])


def test_it_survives_serialization(llm: MemLongLLM, user: str) -> None:
    bound = llm.with_session("chat", user, write="off")
    stored = json.loads(bound.to_json())
    again = MemLongLLM.from_dict(stored)
    assert again.to_dict() == bound.to_dict()
    assert again.memlong is llm.memlong


def test_a_handle_keeps_its_user_and_shares_the_engine(llm: MemLongLLM, user: str) -> None:
    mine = MemLongLLM(bank=llm.bank, options=llm.options, user_id=user)
    bound = mine.with_session("chat")
    assert (bound.session_id, bound.user_id) == ("chat", user) and mine.session_id is None
    assert bound.memlong is llm.memlong


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"temprature": 0}, "temprature.*Did you mean 'temperature'"),
        ({"write": "always"}, "write="),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"session_id": ""}, "names nobody"),
        ({"bank": ""}, "There is no bank. Pass bank="),
    ],
)
def test_a_wrong_argument_is_refused_at_once(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        MemLongLLM(**{"bank": ":memory:", **arguments})


@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_argument_of_a_call_reaches_the_caller(way: str, llm: MemLongLLM) -> None:
    with pytest.raises(ConfigError, match="temprature"):
        responses(llm, way, says("Hello"), temprature=0)
    with pytest.raises(ConfigError, match="neither"):
        responses(llm, way, says("Hello"), write="sometimes")


@pytest.mark.parametrize("way", WAYS)
def test_an_unknown_model_is_named(way: str, tmp_path: Path) -> None:
    unknown = MemLongLLM(model=tmp_path / "nothing", bank=":memory:")
    assert unknown.metadata.context_window > 0
    with pytest.raises(UnsupportedModelError, match=r"Cannot load the model '.*nothing'.*Give a"):
        responses(unknown, way, says("Hello"))


def test_engines_learn_the_window_without_loading_the_model(tmp_path: Path) -> None:
    assert MemLongLLM(bank=":memory:").metadata.context_window == 1024
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 32768}')
    assert MemLongLLM(model=tmp_path, bank=":memory:").metadata.context_window == 4096
    chosen = MemLongLLM(model=tmp_path, bank=":memory:", options={"window_tokens": 512})
    assert chosen.metadata.context_window == 512


def test_making_one_is_cheap_and_loads_nothing() -> None:
    code = """
import sys, time
from llama_index.llms.memlong import MemLongLLM, MemLongMemoryBlock
start = time.perf_counter()
for _ in range(200):
    MemLongMemoryBlock(llm=MemLongLLM(bank="./never-made").with_session("a", "b"))
    MemLongLLM(bank="./never-made").metadata
print(time.perf_counter() - start, sorted({"torch", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    seconds, loaded = done.stdout.split(" ", 1)
    assert loaded.strip() == "[]", done.stderr
    assert float(seconds) < 5


def test_without_llamaindex_a_sentence_says_what_to_install() -> None:
    code = """
import sys
sys.modules["llama_index.core"] = None  # as if it were not there
import llama_index.llms.memlong
from llama_index.llms.memlong import MemLongLLM
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "memlong-agent[llama-index]"' in done.stderr.splitlines()[-1]


def test_a_hundred_handles_are_made_in_no_time(llm: MemLongLLM) -> None:
    start = time.perf_counter()
    handles = [llm.with_session(f"chat-{number}") for number in range(100)]
    assert time.perf_counter() - start < 2 and len({id(each) for each in handles}) == 100
