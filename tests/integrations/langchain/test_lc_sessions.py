"""Every route by which a session reaches the model: written there, recalled, isolated."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField
from langchain_memlong import ChatMemLong
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from lc_helpers import ANSWER, ASKED, TOLD, exchanges, of, recalls, said

from memlong_agent import MemLong

PROMPT = ChatPromptTemplate.from_messages([("user", "{text}")])
Config = dict[str, Any]
Route = Callable[[ChatMemLong, str, Config], str]
AsyncRoute = Callable[[ChatMemLong, str, Config], Awaitable[str]]
pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")


def joined(chunks: Any) -> str:
    return "".join(chunk.text for chunk in chunks)


def graph(chat: ChatMemLong) -> Any:
    """A graph whose node calls the model without passing a config."""
    builder = StateGraph(MessagesState)
    builder.add_node("talk", lambda state: {"messages": [chat.invoke(state["messages"])]})
    builder.add_edge(START, "talk")
    return builder.compile()


def messages(text: str) -> dict[str, Any]:
    return {"messages": [("user", text)]}


def by_bind(chat: ChatMemLong, text: str, config: Config) -> str:
    ids = config["configurable"]
    bound = chat.bind(session_id=ids["session_id"], user_id=ids["user_id"])
    return bound.invoke(text).text


def by_fields(chat: ChatMemLong, text: str, config: Config) -> str:
    open_ = chat.configurable_fields(
        session_id=ConfigurableField(id="session_id"), user_id=ConfigurableField(id="user_id")
    )
    return open_.invoke(text, config).text


def by_constructor(chat: ChatMemLong, text: str, config: Config) -> str:
    return chat.model_copy(update=config["configurable"]).invoke(text).text


def by_langgraph_names(chat: ChatMemLong, text: str, config: Config) -> str:
    ids = config["configurable"]
    named = {"thread_id": ids["session_id"], "langgraph_user_id": ids["user_id"]}
    return chat.invoke(text, {"configurable": named}).text


def by_events_v2(chat: ChatMemLong, text: str, config: Config) -> str:
    async def last() -> str:
        found = ""
        async for event in chat.astream_events(text, config, version="v2"):
            if event["event"] == "on_chat_model_stream":
                found += event["data"]["chunk"].text
        return found

    return asyncio.run(last())


def by_agent_messages(chat: ChatMemLong, text: str, config: Config) -> str:
    agent = create_agent(chat)
    return joined(
        chunk for chunk, _ in agent.stream(messages(text), config, stream_mode="messages")
    )


ROUTES: dict[str, Route] = {
    "invoke": lambda c, t, g: c.invoke(t, g).text,
    "stream": lambda c, t, g: joined(c.stream(t, g)),
    "batch": lambda c, t, g: c.batch([t], [g])[0].text,
    "chain": lambda c, t, g: (PROMPT | c | StrOutputParser()).invoke({"text": t}, g),
    "chain stream": lambda c, t, g: "".join((PROMPT | c | StrOutputParser()).stream(t, g)),
    "bound tools": lambda c, t, g: c.bind_tools([], tool_choice="none").invoke(t, g).text,
    "bind": by_bind,
    "configurable_fields": by_fields,
    "constructor": by_constructor,
    "with_config": lambda c, t, g: c.with_config(configurable=g["configurable"]).invoke(t).text,
    "thread_id and langgraph_user_id": by_langgraph_names,
    "stream_events v3": lambda c, t, g: c.stream_events(t, g, version="v3").output.text,
    "astream_events v2": by_events_v2,
    "graph node": lambda c, t, g: graph(c).invoke(messages(t), g)["messages"][-1].text,
    "agent": lambda c, t, g: create_agent(c).invoke(messages(t), g)["messages"][-1].text,
    "agent, stream_mode messages": by_agent_messages,
}


async def a_stream(chat: ChatMemLong, text: str, config: Config) -> str:
    return "".join([chunk.text async for chunk in chat.astream(text, config)])


async def a_chain(chat: ChatMemLong, text: str, config: Config) -> str:
    chain = PROMPT | chat | StrOutputParser()
    return "".join([piece async for piece in chain.astream({"text": text}, config)])


async def a_events(chat: ChatMemLong, text: str, config: Config) -> str:
    stream = await chat.astream_events(text, config, version="v3")
    return str((await stream.output).text)


async def a_agent(chat: ChatMemLong, text: str, config: Config) -> str:
    agent = create_agent(chat, checkpointer=InMemorySaver())
    ids = {**config["configurable"], "thread_id": "t"}
    state = await agent.ainvoke(messages(text), {"configurable": ids})
    return str(state["messages"][-1].text)


async def a_batch(chat: ChatMemLong, text: str, config: Config) -> str:
    return str((await chat.abatch([text], [config]))[0].text)


async def a_invoke(chat: ChatMemLong, text: str, config: Config) -> str:
    return str((await chat.ainvoke(text, config)).text)


ASYNC_ROUTES: dict[str, AsyncRoute] = {
    "ainvoke": a_invoke,
    "astream": a_stream,
    "abatch": a_batch,
    "chain astream": a_chain,
    "astream_events v3": a_events,
    "agent ainvoke, checkpointer": a_agent,
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_route_writes_recalls_and_isolates(
    chat: ChatMemLong, engine: MemLong, user: str, route: str
) -> None:
    call = ROUTES[route]
    call(chat, TOLD, of(user, "first"))
    (written,) = exchanges(engine, user)
    assert written.session_id == "first" and TOLD in written.text
    assert ANSWER in call(chat, ASKED, of(user, "second"))
    assert ANSWER not in call(chat, ASKED, of(f"not-{user}", "first"))


@pytest.mark.parametrize("route", ASYNC_ROUTES)
async def test_an_async_route_writes_recalls_and_isolates(
    chat: ChatMemLong, engine: MemLong, user: str, route: str
) -> None:
    call = ASYNC_ROUTES[route]
    await call(chat, TOLD, of(user, "first"))
    (written,) = exchanges(engine, user)
    assert written.session_id == "first" and TOLD in written.text
    assert ANSWER in await call(chat, ASKED, of(user, "second"))
    assert ANSWER not in await call(chat, ASKED, of(f"not-{user}", "first"))


def test_without_a_session_memory_is_neither_read_nor_written(
    chat: ChatMemLong, engine: MemLong, user: str
) -> None:
    chat.invoke(TOLD, of(user, "first"))
    before = engine.stats()
    for ids in ({}, {"configurable": {}}, {"configurable": {"session_id": ""}}):
        reply = chat.invoke(ASKED, ids)
        assert recalls(reply) == [] and ANSWER not in reply.text
        assert reply.usage_metadata["input_token_details"] == {"cache_read": 0}
    assert engine.stats() == before


def test_the_call_wins_over_the_config_and_the_config_over_the_constructor(
    make_chat: Callable[..., ChatMemLong], engine: MemLong, user: str
) -> None:
    chat = make_chat(session_id="made", user_id=user)
    config = of(None, "plain", thread_id="thread", memlong_session_id="own")
    chat.invoke("I like tea.")
    chat.invoke("I like milk.", of(None, "plain", thread_id="thread"))
    chat.invoke("I like rum.", config)
    chat.invoke("I like ale.", config, session_id="called")
    sessions = [memory.session_id for memory in exchanges(engine, user)]
    assert sessions == ["made", "plain", "own", "called"]


def test_a_session_without_a_user_is_private_to_it(chat: ChatMemLong, user: str) -> None:
    chat.invoke(TOLD, of(None, f"private-{user}"))
    same = chat.invoke(ASKED, of(None, f"private-{user}"))
    other = chat.invoke(ASKED, of(None, f"other-{user}"))
    guessed = chat.invoke(ASKED, of(user, f"private-{user}"))
    assert recalls(same) and recalls(other) == recalls(guessed) == []


def test_what_the_prompt_holds_is_not_recalled_again(chat: ChatMemLong, user: str) -> None:
    reply = chat.invoke(TOLD, of(user, "first"))
    again = chat.invoke([("user", TOLD), reply, ("user", ASKED)], of(user, "first"))
    assert recalls(again) == [] and ANSWER in again.text


def test_a_reply_says_what_it_recalled_and_what_that_cost(chat: ChatMemLong, user: str) -> None:
    chat.invoke(TOLD, of(user, "first"))
    reply = chat.invoke(ASKED, of(user, "second"), write="off")
    (recall,) = reply.response_metadata["memlong"]["recalls"]
    assert recall["text"].startswith(TOLD) and recall["session_id"] == "first"
    assert 0 < recall["attention_mass"] <= 1 and recall["score"] > 0
    usage = reply.usage_metadata
    read = usage["input_token_details"]["cache_read"]
    assert 0 < read < usage["input_tokens"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    chunks = list(chat.stream(ASKED, of(user, "third"), write="off"))
    assert [chunk for chunk in chunks if chunk.usage_metadata] == chunks[-1:]
    assert chunks[-1].usage_metadata == usage and chunks[-1].chunk_position == "last"
    assert chunks[-1].response_metadata["memlong"]["recalls"][0]["text"] == recall["text"]


def test_the_global_cache_does_not_freeze_the_memory(
    make_chat: Callable[..., ChatMemLong], user: str
) -> None:
    from langchain_core.caches import InMemoryCache
    from langchain_core.globals import set_llm_cache

    set_llm_cache(InMemoryCache())
    try:
        chat = make_chat(write="off")
        before = chat.invoke(ASKED, of(user, "first"))
        make_chat().invoke(TOLD, of(user, "second"))
        assert ANSWER not in before.text and ANSWER in chat.invoke(ASKED, of(user, "first")).text
        cached = make_chat(write="off", cache=True)
        assert ANSWER in cached.invoke(ASKED, of(user, "first")).text
        assert ANSWER not in cached.invoke(ASKED, of(f"not-{user}", "first")).text
    finally:
        set_llm_cache(None)


async def test_two_hundred_interleaved_calls_never_cross_users(
    make_chat: Callable[..., ChatMemLong], engine: MemLong, user: str
) -> None:
    """2 users x 2 sessions, threads and asyncio at once; names tell whose a fact is."""
    chat, order = make_chat(max_tokens=2), random.Random(3)
    people = {f"a-{user}": "Rex", f"b-{user}": "Tom"}
    heard: list[tuple[str, list[str]]] = []

    def work() -> list[tuple[str, str, str]]:
        calls = []
        for number in range(200):
            person = order.choice(list(people))
            session = f"{person}-{order.randrange(2)}"
            text = f"My dog number {number} is called {people[person]}{number}."
            calls.append((person, session, text if order.random() < 0.5 else ASKED))
        return calls

    async def awaited(person: str, session: str, text: str) -> None:
        heard.append((person, recalls(await chat.ainvoke(text, of(person, session)))))

    def threaded(person: str, session: str, text: str) -> None:
        heard.append((person, recalls(chat.invoke(text, of(person, session)))))

    calls = work()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(4) as pool:
        tasks: list[Awaitable[None]] = [
            awaited(*call) if number % 2 else loop.run_in_executor(pool, threaded, *call)
            for number, call in enumerate(calls)
        ]
        await asyncio.gather(*tasks)
    assert len(heard) == 200
    assert sum(len(texts) for _, texts in heard) > 100, "there was something to cross"
    for person, texts in heard:
        others = [name for who, name in people.items() if who != person]
        assert not any(name in text for name in others for text in texts)
    for person, name in people.items():
        mine = [text for text in said(engine, person) if text != ASKED]
        assert mine and all(name in text for text in mine)
