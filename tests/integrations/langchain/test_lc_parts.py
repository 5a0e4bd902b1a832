"""The completion model, the retriever, structured output and per-call settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.prompts import PromptTemplate
from langchain_memlong import ChatMemLong, MemLongLLM, MemLongRetriever
from lc_helpers import ANSWER, ASKED, PLACE, TOLD, exchanges, of, said
from pydantic import BaseModel, Field

from memlong_agent import ConfigError, MemLong
from memlong_agent.testing import preferring

Make = Callable[..., ChatMemLong]


class Dog(BaseModel):
    """A dog."""

    name: str = Field(max_length=8)
    age: int = Field(ge=0, le=30)


class DogDict(TypedDict):
    """A dog."""

    name: str


@pytest.fixture
def llm() -> MemLongLLM:
    return MemLongLLM(**PLACE, max_tokens=32)


def test_a_completion_model_remembers_prompt_and_completion(
    llm: MemLongLLM, engine: MemLong, user: str
) -> None:
    chain = PromptTemplate.from_template("{text}") | llm
    told = chain.invoke({"text": TOLD}, of(user, "s"))
    (written,) = exchanges(engine, user)
    assert written.text == f"User: {TOLD}\nAssistant: {told}" and written.session_id == "s"
    assert ANSWER in llm.invoke(ASKED, of(user, "t"), write="off")
    assert ANSWER not in llm.invoke(ASKED, of(f"not-{user}", "t"), write="off")
    llm.invoke("Hello")
    assert said(engine, user) == [TOLD]


def test_a_completion_batch_keeps_its_sessions_apart(
    llm: MemLongLLM, engine: MemLong, user: str
) -> None:
    llm.batch([TOLD, "I like tea."], [of(f"a-{user}", "s"), of(f"b-{user}", "s")])
    assert said(engine, f"a-{user}") == [TOLD] and said(engine, f"b-{user}") == ["I like tea."]


async def test_the_completion_model_awaited_and_streamed(
    llm: MemLongLLM, engine: MemLong, user: str
) -> None:
    await llm.abatch([TOLD, "I like tea."], [of(user, "s"), of(user, "t")])
    assert sorted(said(engine, user)) == ["I like tea.", TOLD]
    quiet = llm.bind(write="off")
    whole = await quiet.ainvoke(ASKED, of(user, "u"))
    pieces = [piece async for piece in quiet.astream(ASKED, of(user, "u"))]
    again = list(quiet.stream(ASKED, of(user, "u")))
    assert ANSWER in whole and len(pieces) > 1
    assert "".join(pieces).strip() == "".join(again).strip() == whole
    assert len(exchanges(engine, user)) == 2


def test_completion_mistakes_are_clear(llm: MemLongLLM) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'temperature'"):
        MemLongLLM(**PLACE, temprature=0)
    with pytest.raises(ConfigError, match="Did you mean 'max_tokens'"):
        llm.invoke("Hi", max_token=3)


async def test_the_retriever_finds_a_users_memories_with_their_source(
    chat: ChatMemLong, user: str
) -> None:
    chat.invoke(TOLD, of(user, "s"))
    chat.invoke("The dog food is in the cellar.", of(user, "t"))
    retriever = MemLongRetriever(**PLACE, k=1)
    (found,) = retriever.invoke(ASKED, of(user))
    assert TOLD in found.page_content and found.metadata["session_id"] == "s"
    assert found.metadata["score"] > 0 and found.id.startswith(found.metadata["memory_id"])
    assert await retriever.ainvoke(ASKED, of(user)) == [found]
    assert retriever.invoke(ASKED, of(f"not-{user}")) == []
    narrow = MemLongRetriever(**PLACE, scope="session", user_id=user)
    texts = [each.page_content for each in narrow.invoke(ASKED, of(None, "t"))]
    assert not any(TOLD in text for text in texts)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output_always_validates(chat: ChatMemLong, method: Any) -> None:
    for temperature in (0.0, 2.0):
        hot = chat.model_copy(update={"temperature": temperature, "seed": 1, "max_tokens": 64})
        dog = hot.with_structured_output(Dog, method=method).invoke("A dog?")
        assert isinstance(dog, Dog) and len(dog.name) <= 8 and 0 <= dog.age <= 30
        plain = hot.with_structured_output(DogDict, method=method).invoke("A dog?")
        assert isinstance(plain, dict) and isinstance(plain["name"], str)
        assert set(plain) == {"name"}


def test_structured_output_with_what_was_said(chat: ChatMemLong) -> None:
    found = chat.with_structured_output(Dog, include_raw=True).invoke("A dog?")
    assert isinstance(found, dict) and isinstance(found["parsed"], Dog)
    assert found["parsing_error"] is None and found["raw"].text.startswith("{")
    wild = chat.with_structured_output(None, method="json_mode").invoke("A dog?")
    assert isinstance(wild, dict)


def test_too_few_tokens_for_an_object_are_an_error(make_chat: Make) -> None:
    with pytest.raises(ConfigError, match="Raise max_tokens"):
        make_chat(max_tokens=2).with_structured_output(Dog).invoke("A dog?")


def test_a_forced_call_and_a_chosen_one(make_chat: Make, engine: MemLong) -> None:
    chat, tools = make_chat(max_tokens=64), [Dog, DogDict]
    forced = chat.bind_tools(tools, tool_choice="DogDict").invoke("Hi")
    assert [call["name"] for call in forced.tool_calls] == ["DogDict"]
    assert forced.response_metadata["finish_reason"] == "tool_calls" and forced.content == ""
    by_dict = {"type": "function", "function": {"name": "Dog"}}
    assert chat.bind_tools(tools, tool_choice=by_dict).invoke("Hi").tool_calls[0]["name"] == "Dog"
    script = '{"name": "DogDict", "arguments": {"name": "Rex"}}'
    with preferring(engine, script):
        chunks = list(chat.bind_tools(tools).stream("Hi"))
        silent = chat.bind_tools(tools, tool_choice="none").invoke("Hi")
    whole = sum(chunks[1:], chunks[0])
    assert whole.tool_calls[0]["args"] == {"name": "Rex"} and whole.text == ""
    assert silent.tool_calls == []


def test_settings_of_a_call_win_over_fields(make_chat: Make) -> None:
    chat = make_chat(max_tokens=1, stop=["never said"])
    assert chat.invoke("Hello").usage_metadata["output_tokens"] == 1
    assert chat.invoke("Hello", max_tokens=None).usage_metadata["output_tokens"] == 1
    longer = chat.invoke("Hello", max_tokens=8)
    assert longer.usage_metadata["output_tokens"] > 1
    first = longer.text[:1]
    assert chat.invoke("Hello", max_tokens=8, stop=[first]).text == ""
    assert make_chat(stop=[first]).invoke("Hello").text == ""
    assert make_chat(stop=[first]).invoke("Hello", stop=["zzz"]).text == longer.text


def test_a_chat_model_says_what_it_is(chat: ChatMemLong, make_chat: Make) -> None:
    assert isinstance(chat, BaseChatModel) and chat.profile is not None
    window = chat.memlong().engine.placement.window_tokens
    assert chat.profile["max_input_tokens"] == window and chat.profile["tool_calling"] is True
    small = make_chat(options={**PLACE["options"], "window_tokens": 256})
    assert small.profile is not None and small.profile["max_input_tokens"] == 256
    assert "max_input_tokens" not in (make_chat(model="some/hub-model").profile or {})
    renamed = make_chat(model_name="other", stop_sequences=["x"])
    assert (renamed.model, renamed.stop) == ("other", ["x"])
    params = chat._get_ls_params(stop=["x"], model="other")
    assert (params["ls_provider"], params["ls_model_name"]) == ("memlong", "other")
    assert chat.asdict()["bank"] == ":memory:" and chat.asdict()["_type"] == "memlong-chat"
