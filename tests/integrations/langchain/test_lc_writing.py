"""What a call writes: the last exchange, once, whoever calls and how often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_memlong import ChatMemLong, MemLongMiddleware
from langgraph.checkpoint.memory import InMemorySaver
from lc_helpers import ANSWER, ASKED, PLACE, TOLD, exchanges, of, recalls, said
from pydantic import BaseModel

from memlong_agent import MemLong
from memlong_agent.testing import preferring

Make = Callable[..., ChatMemLong]
HISTORY = [
    SystemMessage("You are kind."),
    HumanMessage("I like tea."),
    AIMessage("Noted."),
    HumanMessage("I like milk."),
    AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "c1", "type": "tool_call"}]),
    ToolMessage("It is late.", tool_call_id="c1"),
]


class Dog(BaseModel):
    """A dog."""

    name: str


@tool
def look(what: str) -> str:
    """Look at something."""
    return f"You see {what}."


def calls(*what: str) -> str:
    """What a model says that calls the tool."""
    return "".join(f'{{"name": "look", "arguments": {{"what": "{each}"}}}}' for each in what)


def user_turn(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


def test_only_the_last_exchange_of_a_call_is_written(
    chat: ChatMemLong, engine: MemLong, user: str
) -> None:
    reply = chat.invoke([*HISTORY, HumanMessage(TOLD)], of(user, "s"))
    (written,) = exchanges(engine, user)
    assert written.text == f"User: {TOLD}\nAssistant: {reply.text}"
    assert reply.response_metadata["memlong"]["memory_ids"] == [written.id]


def test_history_sent_again_and_retries_write_each_message_once(
    chat: ChatMemLong, engine: MemLong, user: str
) -> None:
    thread: list[Any] = []
    for text in ("I like tea.", "I like milk.", TOLD):
        thread.append(HumanMessage(text))
        chat.invoke(thread, of(user, "s"))
        thread.append(chat.invoke(thread, of(user, "s")))  # somebody retries
    assert said(engine, user) == ["I like tea.", "I like milk.", TOLD]


def test_a_message_id_makes_a_call_idempotent_for_good(
    chat: ChatMemLong, engine: MemLong, user: str
) -> None:
    for text, message_id in (("I like tea.", "1"), ("I like milk.", "2"), ("I like tea.", "1")):
        chat.invoke(text, of(user, "s"), message_id=message_id)
    assert said(engine, user) == ["I like tea.", "I like milk."]


@pytest.mark.parametrize(
    "call",
    [
        lambda chat, config: chat.invoke(TOLD, config, write="off"),
        lambda chat, config: chat.bind(write="off").invoke(TOLD, config),
        lambda chat, config: chat.model_copy(update={"write": "off"}).invoke(TOLD, config),
        lambda chat, config: chat.with_structured_output(Dog).invoke(TOLD, config),
        lambda chat, config: chat.with_structured_output(None, method="json_mode").invoke(
            TOLD, config
        ),
        lambda chat, config: chat.with_structured_output(Dog, method="function_calling").invoke(
            TOLD, config
        ),
        lambda chat, config: chat.bind_tools([look], tool_choice="any").invoke(TOLD, config),
    ],
    ids=["call", "bind", "field", "schema", "json", "function", "forced call"],
)
def test_what_writes_nothing_still_reads(
    chat: ChatMemLong, engine: MemLong, user: str, call: Any
) -> None:
    assert call(chat, of(user, "s")) is not None
    assert exchanges(engine, user) == []


def test_memory_off_recalls_nothing(chat: ChatMemLong, user: str) -> None:
    chat.invoke(TOLD, of(user, "s"))
    assert recalls(chat.invoke(ASKED, of(user, "t"), memory=False, write="off")) == []
    assert recalls(chat.invoke(ASKED, of(user, "t"), write="off")) != []


@pytest.mark.parametrize("middleware", [False, True], ids=["bare", "middleware"])
def test_a_tool_loop_of_three_calls_writes_one_exchange(
    make_chat: Make, engine: MemLong, user: str, middleware: bool
) -> None:
    chat = make_chat()
    layers = [MemLongMiddleware(chat)] if middleware else []
    agent = create_agent(chat, tools=[look], middleware=layers, checkpointer=InMemorySaver())
    config = of(user, None, thread_id="t")
    with preferring(engine, [calls("a cat"), calls("a dog"), "I saw both."]):
        state = agent.invoke(user_turn(TOLD), config)
    kinds = [message.type for message in state["messages"]]
    assert kinds == ["human", "ai", "tool", "ai", "tool", "ai"]
    (written,) = exchanges(engine, user)
    assert written.text == f"User: {TOLD}\nAssistant: {state['messages'][-1].text}"
    assert written.session_id == "t"
    by_model = state["messages"][-1].response_metadata["memlong"]["memory_ids"]
    assert by_model == ([] if middleware else [written.id]), "one writer per turn"
    agent.invoke(user_turn("I like tea."), config)
    assert said(engine, user) == [TOLD, "I like tea."]


@pytest.mark.parametrize("awaited", [False, True], ids=["invoke", "ainvoke"])
async def test_what_langchain_asks_the_model_for_itself_is_nobodys_turn(
    chat: ChatMemLong, engine: MemLong, user: str, awaited: bool
) -> None:
    summaries = SummarizationMiddleware(chat, trigger=("messages", 3), keep=("messages", 1))
    agent = create_agent(chat, middleware=[summaries], checkpointer=InMemorySaver())
    config, told = of(user, None, thread_id="t"), [TOLD, "I like tea.", "I like milk."]
    for text in told:
        turn = user_turn(text)
        state = await agent.ainvoke(turn, config) if awaited else agent.invoke(turn, config)
    assert "summary" in state["messages"][0].text, "the thread was summarized"
    assert said(engine, user) == told


async def test_the_middleware_writes_once_when_awaited(
    make_chat: Make, engine: MemLong, user: str
) -> None:
    chat = make_chat()
    agent = create_agent(chat, middleware=[MemLongMiddleware(chat)])
    for _ in range(2):  # the second is a retry
        await agent.ainvoke(user_turn(TOLD), of(user, "s"))
    assert said(engine, user) == [TOLD]
    state = await agent.ainvoke(user_turn(ASKED), of(user, "t"))
    assert ANSWER in state["messages"][-1].text
    assert ANSWER not in (await agent.ainvoke(user_turn(ASKED), {}))["messages"][-1].text


def test_the_middleware_can_be_told_not_to_write(
    make_chat: Make, engine: MemLong, user: str
) -> None:
    chat = make_chat()
    agent = create_agent(chat, middleware=[MemLongMiddleware(chat, write=False)])
    agent.invoke(user_turn(TOLD), of(user, "s"))
    agent.invoke(user_turn(TOLD), {})
    assert exchanges(engine, user) == []


def test_a_trimmed_thread_is_supplied_by_the_bank(
    make_chat: Make, engine: MemLong, user: str
) -> None:
    chat = make_chat()
    layer = MemLongMiddleware(chat, keep_last=1)
    agent = create_agent(chat, middleware=[layer], checkpointer=InMemorySaver())
    config = of(user, None, thread_id="t")
    for text in (TOLD, "I like tea."):
        agent.invoke(user_turn(text), config)
    state = agent.invoke(user_turn(ASKED), config)
    assert len(state["messages"]) == 6, "the thread itself is whole"
    last = state["messages"][-1]
    assert ANSWER in last.text and any(TOLD in text for text in recalls(last))
    alone = chat.invoke([HumanMessage(ASKED)], {})
    usage = last.response_metadata["memlong"]["usage"]
    assert usage["prompt_tokens"] == alone.response_metadata["memlong"]["usage"]["prompt_tokens"]


def test_trimming_keeps_the_whole_last_turn(make_chat: Make) -> None:
    from langchain_memlong.middleware import _newest

    thread = [HumanMessage("1"), AIMessage("2"), *HISTORY[3:], AIMessage("6")]
    assert _newest(thread, None) == thread and _newest(thread, 6) == thread
    assert _newest(thread, 5) == _newest(thread, 2) == thread[2:]
    assert _newest(thread[1:2], 1) == thread[1:2]


def test_another_model_is_told_in_words(make_chat: Make, engine: MemLong, user: str) -> None:
    heard: list[list[Any]] = []

    class Foreign(GenericFakeChatModel):
        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            heard.append(messages)
            return super()._generate(messages, *args, **kwargs)

    chat = make_chat()
    model = Foreign(messages=iter(["Noted.", "It is Rex.", "Who?", "Rex.", "Rex."]))
    agent = create_agent(model, middleware=[MemLongMiddleware(chat)], system_prompt="Be kind.")
    agent.invoke(user_turn(TOLD), of(user, "s"))
    assert said(engine, user) == [TOLD]
    agent.invoke(user_turn(ASKED), of(user, "t"))
    agent.invoke(user_turn(ASKED), of(f"not-{user}", "t"))
    agent.invoke(user_turn(ASKED), {})
    thread = [HumanMessage(TOLD), AIMessage("Noted."), HumanMessage("And my dog?")]
    agent.invoke({"messages": thread}, of(user, "s"))
    told = [messages[0].text for messages in heard]
    assert TOLD in told[1] and told[1].startswith("Be kind.\n\nFrom earlier conversations")
    assert [told[0], *told[2:4]] == ["Be kind."] * 3
    assert TOLD not in told[4], "what the prompt holds is not told again"


def test_a_structured_agent_answers_with_the_schema_and_writes_nothing(
    make_chat: Make, engine: MemLong, user: str
) -> None:
    chat = make_chat()
    layers = [MemLongMiddleware(chat)]
    agent = create_agent(chat, middleware=layers, response_format=Dog)
    state = agent.invoke(user_turn(TOLD), of(user, "s"))
    assert isinstance(state["structured_response"], Dog)
    assert exchanges(engine, user) == []


def test_a_prompt_that_is_too_long_says_how_much_left_it(user: str) -> None:
    chat = ChatMemLong(**PLACE, max_tokens=4)
    thread = [HumanMessage("I like tea. " * 40), AIMessage("Noted.")] * 20
    reply = chat.invoke([*thread, HumanMessage(ASKED)], of(user, "s"))
    assert reply.response_metadata["memlong"]["usage"]["overflowed_tokens"] > 100
