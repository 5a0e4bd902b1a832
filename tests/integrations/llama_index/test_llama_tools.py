"""Tools, agents and structured output. Where the model must know what to say, a script says it.

A script puts words into memlong-tiny's mouth through the real sampler, under the real constraint
(`memlong_agent.testing.preferring`); everything around it is real.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import pytest
from llama_helpers import says
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.memlong import MemLongLLM, MemLongMemoryBlock
from pydantic import BaseModel

from memlong_agent import ConfigError
from memlong_agent.testing import preferring

# Making an agent, LlamaIndex looks at every attribute of it, pydantic's deprecated ones too.
lets_agents_look = pytest.mark.filterwarnings(
    "ignore::pydantic.warnings.PydanticDeprecationWarning"
)
TOLD, ASKED = "My dog is called Rex.", "What is my dog called?"


def get_weather(location: str, days: int = 1) -> str:
    """Get the weather at a location."""
    return f"It is sunny in {location}."


def get_time(location: str) -> str:
    """Get the time at a location."""
    return f"It is noon in {location}."


class Pet(BaseModel):
    """A pet."""

    name: str
    age: int
    kind: Literal["dog", "cat"]


WEATHER, TIME = FunctionTool.from_defaults(get_weather), FunctionTool.from_defaults(get_time)
CHOICES = [
    ({"tool_required": True}, {"get_weather", "get_time"}),
    ({"tool_choice": "required"}, {"get_weather", "get_time"}),
    ({"tool_choice": "get_time"}, {"get_time"}),
    ({"tool_choice": {"type": "function", "function": {"name": "get_time"}}}, {"get_time"}),
]


def call(name: str, /, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


@pytest.fixture
def roomy(llm: MemLongLLM) -> MemLongLLM:
    """Room for a whole object."""
    return llm.model_copy(update={"max_tokens": 200})


@pytest.mark.parametrize(("wanted", "names"), CHOICES)
def test_a_forced_call_is_made_and_valid(
    wanted: dict[str, Any], names: set[str], roomy: MemLongLLM, user: str, texts: Any
) -> None:
    """Nothing is put into the model's mouth here: what it says is valid, if not sensible."""
    bound = roomy.with_session("chat", user)
    response = bound.chat_with_tools([WEATHER, TIME], user_msg="Hello.", **wanted)
    (made,) = bound.get_tool_calls_from_response(response)
    assert made.tool_name in names and isinstance(made.tool_kwargs["location"], str)
    assert response.raw["finish_reason"] == "tool_calls"
    assert texts(user) == [], "a call is not the end of a turn"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_free_call_is_read_and_its_arguments_kept(streaming: bool, roomy: MemLongLLM) -> None:
    script = call("get_weather", location="Köln", days=2)
    with preferring(roomy.memlong, script):
        if streaming:
            *pieces, response = roomy.stream_chat_with_tools([WEATHER], user_msg="And now?")
            assert not any(piece.delta for piece in pieces), "a call is not text"
        else:
            response = roomy.chat_with_tools([WEATHER], user_msg="And now?")
    (made,) = roomy.get_tool_calls_from_response(response)
    assert (made.tool_name, made.tool_kwargs) == ("get_weather", {"location": "Köln", "days": 2})
    (block,) = [each for each in response.message.blocks if isinstance(each, ToolCallBlock)]
    assert block.tool_call_id == made.tool_id and made.tool_id


def test_parallel_calls_are_given_where_they_are_wanted(roomy: MemLongLLM) -> None:
    script = "\n".join([call("get_weather", location="Rome"), call("get_time", location="Rome")])
    for wanted in (True, False):
        with preferring(roomy.memlong, script):
            response = roomy.chat_with_tools(
                [WEATHER, TIME], user_msg="And now?", allow_parallel_tool_calls=wanted
            )
        assert len(roomy.get_tool_calls_from_response(response)) == (2 if wanted else 1)


def test_no_call_is_no_error_unless_it_is_asked_for(llm: MemLongLLM) -> None:
    response = llm.chat_with_tools([WEATHER], user_msg=TOLD, tool_choice="none")
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ConfigError, match="tool_required=True"):
        llm.get_tool_calls_from_response(response)


@pytest.mark.parametrize("choice", ["get_rich", 7])
def test_a_choice_of_no_tool_is_refused(choice: Any, llm: MemLongLLM) -> None:
    with pytest.raises(ConfigError, match="tool_choice"):
        llm.chat_with_tools([WEATHER], user_msg="Hello.", tool_choice=choice)


def test_predict_and_call_runs_the_tool(roomy: MemLongLLM) -> None:
    with preferring(roomy.memlong, call("get_weather", location="Paris")):
        done = roomy.predict_and_call([WEATHER], user_msg="Weather in Paris?")
    assert done.response == "It is sunny in Paris."
    with preferring(roomy.memlong, call("get_weather", location="Paris")):
        done = asyncio.run(roomy.apredict_and_call([WEATHER], user_msg="Weather in Paris?"))
    assert done.response == "It is sunny in Paris."


@lets_agents_look
@pytest.mark.parametrize("streaming", [True, False])
def test_an_agent_uses_tools_and_writes_its_turn_once(
    streaming: bool, roomy: MemLongLLM, user: str, texts: Any, open_memory: Any
) -> None:
    bound = roomy.with_session("chat", user)
    memory = open_memory("chat", MemLongMemoryBlock(llm=bound), token_limit=2000)
    agent = FunctionAgent(
        tools=[WEATHER, TIME], llm=bound, system_prompt="Be brief.", streaming=streaming
    )
    script = [
        call("get_weather", location="Paris"),
        call("get_time", location="Paris"),
        "Sunny noon.",
    ]

    async def run(text: str) -> tuple[str, list[str], str]:
        handler = agent.run(text, memory=memory)
        streamed = [
            event.delta async for event in handler.stream_events() if isinstance(event, AgentStream)
        ]
        output = await handler
        called = [each.tool_name for each in output.tool_calls]
        return str(output), called, "".join(streamed)

    with preferring(bound.memlong, script):
        said, called, streamed = asyncio.run(run(TOLD))
    assert said == "Sunny noon." and called == ["get_weather", "get_time"]
    assert not streaming or streamed == said
    assert texts(user) == [f"User: {TOLD}\nAssistant: Sunny noon."]

    with preferring(bound.memlong, ["You are welcome."]):
        asyncio.run(run("Thank you."))  # the whole thread, tool calls and results, is sent again
    assert texts(user)[1:] == ["User: Thank you.\nAssistant: You are welcome."]
    answer = roomy.with_session("next", user).chat(says(ASKED))
    assert "Rex" in str(answer.message.content)


@lets_agents_look
def test_an_agent_whose_history_lives_elsewhere_recalls(roomy: MemLongLLM, user: str) -> None:
    roomy.with_session("chat", user).chat(says(TOLD))
    agent = FunctionAgent(tools=[WEATHER], llm=roomy.with_session("next", user))

    async def run() -> Any:
        return await agent.run(ASKED)

    output = asyncio.run(run())
    assert any(recall["text"].startswith(TOLD) for recall in output.raw["memlong"]["recalls"])


@lets_agents_look
def test_turns_of_an_agent_that_leave_its_short_memory_are_written_once(
    roomy: MemLongLLM, user: str, questions: Any, open_memory: Any
) -> None:
    bound = roomy.with_session("chat", user)
    block = MemLongMemoryBlock(llm=bound)
    memory = open_memory("chat", block, token_limit=80, token_flush_size=20)
    agent = FunctionAgent(tools=[WEATHER], llm=bound, streaming=False)
    said = [f"Please look out of window number {number}." for number in range(4)]

    async def run(text: str) -> None:
        await agent.run(text, memory=memory)

    for text in said:
        with preferring(bound.memlong, [call("get_weather", location="Paris"), "It is sunny."]):
            asyncio.run(run(text))
    assert len(memory.get()) < len(memory.get_all()), "something has left the short memory"
    assert questions(user) == said


@lets_agents_look
@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")
def test_an_agent_that_reasons_in_the_prompt_writes_nothing_but_its_turns(
    roomy: MemLongLLM, user: str, texts: Any, open_memory: Any
) -> None:
    """ReActAgent sends its own instructions and observations as a user's messages."""
    reading = roomy.with_session("chat", user).reading()
    block = MemLongMemoryBlock(llm=reading)
    memory = open_memory("chat", block, token_limit=2000)
    short = ReActChatFormatter(system_header="Think, then act.\n{tool_desc}")
    agent = ReActAgent(tools=[WEATHER], llm=reading, formatter=short, streaming=False)
    steps = [
        'Thought: I need a tool.\nAction: get_weather\nAction Input: {"location": "Paris"}',
        "Thought: I can answer without using any more tools.\nAnswer: It is sunny.",
    ]

    async def run() -> str:
        return str(await agent.run(TOLD, memory=memory))

    with preferring(reading.memlong, steps):
        assert asyncio.run(run()) == "It is sunny."
    assert texts(user) == []
    asyncio.run(block.aput(memory.get_all(), session_id="chat"))
    (written,) = texts(user)
    assert written.startswith(f"User: {TOLD}\nAssistant: ") and written.endswith("It is sunny.")


def structured(llm: MemLongLLM, way: str) -> Any:
    """The last object of one structured prediction, whichever way it is asked for."""
    prompt = PromptTemplate("Describe {name}.")
    if way == "structured_predict":
        return llm.structured_predict(Pet, prompt, name="Rex")
    if way == "stream_structured_predict":
        return list(llm.stream_structured_predict(Pet, prompt, name="Rex"))[-1]
    if way == "as_structured_llm":
        return llm.as_structured_llm(Pet).chat(says("Describe Rex.")).raw

    async def asynchronously() -> Any:
        if way == "astructured_predict":
            return await llm.astructured_predict(Pet, prompt, name="Rex")
        streamed = await llm.astream_structured_predict(Pet, prompt, name="Rex")
        return [each async for each in streamed][-1]

    return asyncio.run(asynchronously())


@pytest.mark.parametrize(
    "way",
    [
        "structured_predict",
        "stream_structured_predict",
        "astructured_predict",
        "astream_structured_predict",
        "as_structured_llm",
    ],
)
def test_structured_output_always_validates_and_is_never_written(
    way: str, roomy: MemLongLLM, user: str, questions: Any
) -> None:
    bound = roomy.with_session("chat", user)
    found = structured(bound, way)
    assert isinstance(found, Pet) and found.kind in ("dog", "cat")
    with preferring(bound.memlong, call("Pet", name="Rex", age=7, kind="dog")):
        assert structured(bound, way) == Pet(name="Rex", age=7, kind="dog")
    assert questions(user) == []


def test_a_schema_of_ones_own_is_met_and_never_written(
    roomy: MemLongLLM, user: str, questions: Any
) -> None:
    bound = roomy.with_session("chat", user)
    answer = bound.chat(says("Describe Rex."), schema=Pet.model_json_schema())
    assert Pet.model_validate_json(str(answer.message.content))
    assert questions(user) == []


def test_results_of_tools_reach_the_model(roomy: MemLongLLM) -> None:
    block = ToolCallBlock(
        tool_call_id="abc", tool_name="get_weather", tool_kwargs={"location": "Paris"}
    )
    result = ChatMessage(
        role="tool", content="It is sunny.", additional_kwargs={"tool_call_id": "abc"}
    )
    asked = [*says("Weather?"), ChatMessage(role="assistant", blocks=[block])]
    with_result = roomy.chat([*asked, result]).raw["usage"]["prompt_tokens"]
    assert with_result > roomy.chat(asked).raw["usage"]["prompt_tokens"]
