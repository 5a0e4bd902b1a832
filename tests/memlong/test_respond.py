"""Replies to explicit messages: whose memory, what is written, forced calls, schemas, overflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from memlong_agent import ConfigError, MemLong, MemLongError, Reply
from memlong_agent.memlong import Stream
from memlong_agent.testing import preferring

Open = Callable[..., MemLong]

REX = {"role": "user", "content": "My dog is called Rex."}
WHO = {"role": "user", "content": "What is my dog called?"}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now", "description": "The time."}}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def finished(stream: Stream) -> Reply:
    pieces = list(stream)
    assert all(pieces) and "".join(pieces).strip() == stream.reply.text
    return stream.reply


def say(ml: MemLong, *messages: dict[str, Any], **options: Any) -> Reply:
    return finished(ml.respond(list(messages), **{"max_tokens": 6, **options}))


def shown(ml: MemLong, reply: Reply) -> str:
    return str(ml.engine.tokenizer.decode(list(reply.prompt_ids)))


def test_nobody_named_reads_and_writes_nothing(open_memlong: Open) -> None:
    ml = open_memlong()
    reply = say(ml, REX, write=True)
    assert reply.recalled == () and reply.memory_ids == () and reply.session_id is None
    assert ml.stats() == {}


def test_one_exchange_is_written_and_recalled_by_another_session_of_the_user(
    open_memlong: Open,
) -> None:
    ml = open_memlong()
    system = {"role": "system", "content": "You are kind."}
    shots = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    told = say(ml, system, *shots, REX, session_id="a", user_id="alice", write=True)
    assert len(told.memory_ids) == 1 and told.usage.written_tokens > 0
    (memory,) = ml.memories(user_id="alice").list()
    assert memory.text == f"User: {REX['content']}\nAssistant: {told.text}".strip()
    assert memory.session_id == "a"
    asked = say(ml, WHO, session_id="b", user_id="alice")
    assert [recall.memory_id for recall in asked.recalled] == list(told.memory_ids)
    assert asked.usage.recalled_tokens > 0 and 0 < asked.attention_mass < 1
    assert "Rex" not in shown(ml, asked)
    for other in ({"user_id": "bob", "session_id": "a"}, {"session_id": "a"}, {}):
        assert say(ml, WHO, **other).recalled == ()
    assert say(ml, WHO, user_id="alice", memory=False).recalled == ()
    assert len(ml.memories(user_id="alice").list()) == 1, "reading wrote nothing"


def test_what_the_messages_hold_is_not_recalled(open_memlong: Open) -> None:
    ml = open_memlong()
    told = say(ml, REX, session_id="a", write=True)
    history = [REX, {"role": "assistant", "content": told.text}, WHO]
    assert say(ml, *history, session_id="a").recalled == ()


def test_retries_replace_and_a_message_id_is_written_once(open_memlong: Open) -> None:
    ml = open_memlong()
    one = say(ml, REX, session_id="a", write=True)
    again = say(ml, REX, session_id="a", write=True)
    assert one.memory_ids == again.memory_ids
    for _ in range(2):
        say(ml, WHO, session_id="a", write=True, message_id="m")
        say(ml, REX, session_id="a", write=True, message_id="n")
    assert len(ml.memories(session_id="a").list()) == 3


def test_the_live_window_of_the_session_is_left_alone(open_memlong: Open) -> None:
    ml = open_memlong()
    session = ml.session("a", user_id="alice")
    before = session.chat("I like tea.", max_tokens=4)
    say(ml, {"role": "user", "content": "The zebra is here."}, session_id="a", user_id="alice")
    after = session.chat("And now?", max_tokens=4)
    assert "zebra" not in shown(ml, after) and "I like tea." in shown(ml, after)
    assert before.usage.prompt_tokens < after.usage.prompt_tokens


def test_the_oldest_messages_leave_whole_and_are_counted(open_memlong: Open) -> None:
    ml = open_memlong(window_tokens=192)
    system = {"role": "system", "content": "Stay."}
    many = [
        {"role": role, "content": f"Number {n} of the talk."}
        for n in range(20)
        for role in ("user", "assistant")
    ]
    reply = say(ml, system, *many, WHO)
    prompt = shown(ml, reply)
    assert reply.usage.overflowed_tokens > 200 and reply.usage.prompt_tokens < 192
    assert "Stay." in prompt and "Number 19" in prompt and "Number 0 " not in prompt
    assert prompt.count("umber") == prompt.count("Number") == prompt.count("talk.")
    assert say(ml, system, *many[-2:], WHO).usage.overflowed_tokens == 0


# Like those of Mistral and Llama 2: roles take turns, and the user begins.
TURNS = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must take turns') }}{% endif %}[{{ m.role }}]{{ m.content }}"
    "{% endfor %}"
)


def test_a_question_leaves_with_its_answer_so_that_roles_still_take_turns(
    open_memlong: Open,
) -> None:
    ml = open_memlong(window_tokens=128)
    ml.engine.tokenizer.chat_template = TURNS
    for size in range(3, 16):
        pairs = [[{**REX}, {"role": "assistant", "content": f"Noted {n}."}] for n in range(size)]
        reply = say(ml, *(each for pair in pairs for each in pair), WHO)
        assert shown(ml, reply).startswith("[user]") and WHO["content"] in shown(ml, reply)


def test_the_question_stays_while_calls_and_results_leave(open_memlong: Open) -> None:
    ml = open_memlong(window_tokens=192)
    loop: list[dict[str, Any]] = [{"role": "user", "content": "What is the sum?"}]
    for n in range(8):
        call = {"id": str(n), "name": "add", "arguments": {"a": n, "b": n}}
        loop.append({"role": "assistant", "content": f"Step {n}.", "tool_calls": [call]})
        loop.append({"role": "tool", "tool_call_id": str(n), "content": f"Result {n} is here."})
    reply = say(ml, *loop)
    prompt = shown(ml, reply)
    assert reply.usage.overflowed_tokens > 0 and "What is the sum?" in prompt
    assert "Step 7." in prompt and "Result 7" in prompt and "Step 0." not in prompt
    assert prompt.count("Step") == prompt.count("is here."), "a call leaves with its result"


def test_a_result_without_its_call_is_not_left_out_in_silence(open_memlong: Open) -> None:
    ml = open_memlong()
    result = {"role": "tool", "tool_call_id": "1", "content": "It is sunny."}
    reply = say(ml, result, WHO)
    assert "It is sunny." in shown(ml, reply) and reply.usage.overflowed_tokens == 0


def test_a_call_after_an_overflow_leaves_nothing_pending(open_memlong: Open) -> None:
    ml = open_memlong(window_tokens=256)
    long = {"role": "user", "content": " ".join(f"Fact {n} is told." for n in range(90))}
    who: dict[str, Any] = {"session_id": "a", "write": True, "max_tokens": 60}
    reply = say(ml, long, tools=[NOW], tool_choice="any", **who)
    assert reply.tool_calls and reply.usage.overflowed_tokens > 0
    assert sum(each.chunks for each in ml.stats().values()) == 0


def test_neighbors_of_one_role_are_one_message(open_memlong: Open) -> None:
    ml = open_memlong()
    asked = [{"role": "user", "content": "One."}, {"role": "user", "content": "Two."}]
    late = {"role": "system", "content": "Late."}
    prompt = shown(ml, say(ml, *asked, late, REX))
    same = shown(ml, say(ml, late, {"role": "user", "content": "One.\nTwo.\n" + REX["content"]}))
    assert prompt == same


@pytest.mark.parametrize("choice", ["any", "add"])
def test_a_forced_call_validates_and_is_no_text(open_memlong: Open, choice: str) -> None:
    ml = open_memlong()
    for seed in range(4):
        stream = ml.respond(
            [REX],
            tools=[ADD, NOW],
            tool_choice=choice,
            session_id="a",
            write=True,
            max_tokens=200,
            temperature=1.0,
            seed=seed,
        )
        assert list(stream) == []
        (call,) = stream.reply.tool_calls
        assert choice in ("any", call.name)
        if call.name == "add":
            assert {type(value) for value in call.arguments.values()} == {int}
            assert set(call.arguments) == {"a", "b"}
        assert stream.reply.text == "" and stream.reply.finish_reason == "stop"
    assert ml.stats() == {}, "a call is not a final reply"


@pytest.mark.parametrize("schema", [PERSON, "json"])
def test_a_reply_under_a_schema_is_streamed_and_validates(open_memlong: Open, schema: Any) -> None:
    ml = open_memlong()
    for temperature in (0.0, 1.5):
        reply = say(ml, REX, schema=schema, max_tokens=80, temperature=temperature, stop='"')
        value = json.loads(reply.text)
        assert isinstance(value, dict)
        if schema is PERSON:
            assert set(value) == {"name", "age"} and isinstance(value["age"], int)


def test_a_loop_of_calls_writes_the_question_and_the_final_reply_once(open_memlong: Open) -> None:
    ml = open_memlong(model=None)
    who: dict[str, Any] = {"session_id": "a", "user_id": "alice", "write": True}
    asked = {"role": "user", "content": "How much is 2 and 40?"}
    call, final = '{"name": "add", "arguments": {"a": 2, "b": 40}}', "It is 42 ☀ of course."
    with preferring(ml, [call, call, final]):
        messages: list[dict[str, Any]] = [asked]
        for _ in range(2):
            reply = say(ml, *messages, tools=[ADD], max_tokens=60, **who)
            (made,) = reply.tool_calls
            assert made.arguments == {"a": 2, "b": 40} and reply.text == ""
            messages += [
                {"role": "assistant", "content": "", "tool_calls": [made.model_dump()]},
                {"role": "tool", "tool_call_id": made.id, "name": "add", "content": "42"},
            ]
        reply = say(ml, *messages, tools=[ADD], max_tokens=60, **who)
        assert reply.text == final and reply.tool_calls == ()
    (memory,) = ml.memories(user_id="alice").list()
    assert memory.text == f"User: {asked['content']}\nAssistant: {final}"
    assert say(ml, asked).text != final, "outside, the model is on its own"


def test_tools_and_a_schema_give_one_or_the_other(open_memlong: Open) -> None:
    ml = open_memlong(model=None)
    options = {"tools": [ADD], "schema": PERSON, "max_tokens": 60}
    with preferring(ml, '{"name": "add", "arguments": {"a": 1, "b": 2}}'):
        assert say(ml, WHO, **options).tool_calls[0].name == "add"
    with preferring(ml, '{"name": "Rex", "age": 3}'):
        reply = say(ml, WHO, **options)
    assert json.loads(reply.text) == {"name": "Rex", "age": 3} and not reply.tool_calls
    with preferring(ml, '{"name": "add", "arguments": {"a": 1, "b": 2}}'):
        assert not say(ml, WHO, tools=[ADD], tool_choice="none", max_tokens=60).tool_calls


def test_the_constraint_is_stronger_than_the_preference(open_memlong: Open) -> None:
    ml = open_memlong(model=None)
    with preferring(ml, "I would rather talk."):
        assert say(ml, WHO, tools=[ADD], tool_choice="any", max_tokens=60).tool_calls


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temprature": 0}, "temprature"),
        ({"tools": [ADD], "tool_choice": "sub"}, "'sub' names no tool.*auto, none, any, add"),
        ({"tool_choice": "any"}, "'any' names no tool"),
        ({"tools": [{"name": "add"}]}, "is not a tool"),
        ({"tools": [ADD, ADD]}, "Two tools"),
        ({"schema": "xml"}, "'xml'.*JSON schema"),
        ({"session_id": ""}, "empty session_id"),
        ({"schema": {"not": {}}}, "cannot be guaranteed"),
        ({"schema": PERSON, "max_tokens": 5}, "max_tokens=5.*length.*Raise max_tokens"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(
    open_memlong: Open, options: dict[str, Any], says: str
) -> None:
    ml = open_memlong()
    with pytest.raises(ConfigError, match=says):
        say(ml, REX, **{"session_id": "a", "write": True, **options})
    assert ml.stats() == {}


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "Hi",
        ["Hi"],
        [{"role": "robot", "content": "Hi"}],
        [{"role": "user", "content": ["Hi"]}],
        [{"role": "user", "content": "Hi", "text": "Hi"}],
        [{"role": "user", "content": "a\0b"}],
        [{"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}],
    ],
)
def test_what_is_not_a_message_is_refused_at_once(open_memlong: Open, messages: Any) -> None:
    with pytest.raises(ConfigError):
        open_memlong().respond(messages)


def test_a_closed_stream_writes_nothing_and_the_session_goes_on(open_memlong: Open) -> None:
    ml = open_memlong()
    stream = ml.respond([REX], session_id="a", write=True, max_tokens=40, temperature=1.0, seed=1)
    next(stream)
    stream.close()
    assert list(stream) == []
    with pytest.raises(MemLongError, match="not finished"):
        _ = stream.reply
    assert ml.stats() == {}
    assert say(ml, REX, session_id="a", write=True).memory_ids


def test_a_nul_that_a_model_says_is_left_out(open_memlong: Open) -> None:
    ml = open_memlong(model=None)
    with preferring(ml, "one\0two"):
        reply = say(ml, REX, session_id="a", write=True, max_tokens=20)
    assert reply.text == "onetwo" and reply.memory_ids
