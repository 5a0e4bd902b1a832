"""How tools reach the prompt and how calls come back, in the formats of several model families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from memlong_agent import ConfigError, MemLong
from memlong_agent.memlong.chat_text import CallStyle, ChatText
from memlong_agent.memlong.messages import conversation
from memlong_agent.memlong.tool_calls import CallingText, read_calls
from memlong_agent.testing import preferring

Open = Callable[..., MemLong]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
        },
    },
}
CALL = '{"name": "get_weather", "arguments": {"place": "Paris"}}'
ASKED = {"role": "user", "content": "What is the weather in Paris?"}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "a", "name": "get_weather", "arguments": {"place": "Paris"}}],
}
RESULT = {"role": "tool", "tool_call_id": "a", "name": "get_weather", "content": "sunny"}
# The shapes of Qwen2.5 and Llama 3.1, without their prose.
QWEN = (
    "{%- if messages[0].role == 'system' or tools %}<|im_start|>system\n"
    "{{ messages[0].content if messages[0].role == 'system' else '' }}"
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
    "<|im_end|>\n{% endif %}{% for m in messages %}{% if m.role != 'system' %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n"
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('only single tool-calls') }}{% endif %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}"
    "{% else %}{{ m.content }}{% if tools and loop.first %}{{ tools | tojson }}{% endif %}"
    "{% endif %}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n{% endif %}"
)
NO_TOOLS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def prompt(ml: MemLong, template: str | None, *messages: dict[str, Any]) -> tuple[str, str]:
    """The two parts of the prompt as text."""
    ml.engine.tokenizer.chat_template = template
    asked = conversation(messages)
    first, rest = ChatText(ml.engine, [WEATHER]).prompt(asked.system, asked.without(0))
    return ml.engine.tokenizer.decode(first), ml.engine.tokenizer.decode(rest)


@pytest.mark.parametrize("template", [QWEN, LLAMA, NO_TOOLS, None])
def test_tools_calls_and_results_are_in_the_prompt(open_memlong: Open, template: str) -> None:
    head, rest = prompt(open_memlong(), template, ASKED, CALLED, RESULT)
    whole = head + rest
    assert "Weather of a place." in whole and "sunny" in rest
    assert '"place": "Paris"' in rest


@pytest.mark.parametrize("template", [QWEN, None])
def test_the_list_of_tools_stays_when_messages_leave(
    open_memlong: Open, template: str | None
) -> None:
    for system in ([], [{"role": "system", "content": "Be kind."}]):
        head, rest = prompt(open_memlong(), template, *system, ASKED)
        assert "get_weather" in head and "get_weather" not in rest
        assert "What is the weather" in rest


def test_the_bundled_model_sees_tools_as_its_template_writes_them(open_memlong: Open) -> None:
    ml = open_memlong(model=None)
    tokenizer = ml.engine.tokenizer
    messages = [ASKED, CALLED, RESULT]
    whole = "".join(prompt(ml, tokenizer.chat_template, *messages))
    calls = [
        {"type": "function", "function": {"name": "get_weather", "arguments": {"place": "Paris"}}}
    ]
    same = tokenizer.apply_chat_template(
        [ASKED, {"role": "assistant", "content": "", "tool_calls": calls}, RESULT],
        tools=[WEATHER],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert whole == same and f"<|assistant|>{CALL}<|end|><|tool|>sunny" in whole


def test_a_prompt_in_two_parts_has_the_tokens_of_the_whole(open_memlong: Open) -> None:
    ml = open_memlong(model=None)
    head, rest = ChatText(ml.engine, [WEATHER]).prompt("", [ASKED])
    same = ml.engine.tokenizer.apply_chat_template(
        [ASKED], tools=[WEATHER], add_generation_prompt=True, return_dict=True
    )
    assert [*head, *rest] == list(same["input_ids"])


def test_two_calls_at_once_are_text_where_a_template_takes_only_one(open_memlong: Open) -> None:
    both = {**CALLED, "tool_calls": CALLED["tool_calls"] * 2}
    _, rest = prompt(open_memlong(), LLAMA, ASKED, both, RESULT)
    assert rest.count('"place": "Paris"') == 2


def test_a_template_that_refuses_is_one_sentence(open_memlong: Open) -> None:
    with pytest.raises(ConfigError, match=r"refuses.*not this.*order"):
        prompt(open_memlong(), "{{ raise_exception('not this') }}", ASKED)


@pytest.mark.parametrize(
    ("template", "style"),
    [
        (QWEN, CallStyle("<tool_call>\n", "arguments")),
        (LLAMA, CallStyle("", "parameters")),
        (NO_TOOLS, CallStyle()),
        (None, CallStyle(" ")),
    ],
)
def test_how_a_model_writes_calls_is_learned_from_its_template(
    open_memlong: Open, template: str | None, style: CallStyle
) -> None:
    ml = open_memlong()
    ml.engine.tokenizer.chat_template = template
    assert ChatText(ml.engine, [WEATHER]).call_style() == style


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        (CALL, "", [{"place": "Paris"}]),
        (f" {CALL}\n", "", [{"place": "Paris"}]),
        (f"[{CALL}, {CALL}]", "", [{"place": "Paris"}] * 2),
        (f"{CALL}{CALL}", "", [{"place": "Paris"}] * 2),
        (CALL.replace("arguments", "parameters"), "", [{"place": "Paris"}]),
        (
            '{"name": "get_weather", "arguments": "{\\"place\\": \\"Rom\\"}"}',
            "",
            [{"place": "Rom"}],
        ),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", [{"place": "Paris"}]),
        (f"Let me see.\n<tool_call>{CALL}</tool_call>", "Let me see.", [{"place": "Paris"}]),
        ('{"name": "other", "arguments": {}}', None, []),
        ('{"name": "get_weather", "arguments": [1]}', None, []),
        (f"{CALL} and more", None, []),
        ('{"place": "Paris"}', None, []),
        ('{"name": "get_weather", "argu', None, []),
        ("<tool_call>nothing</tool_call>", None, []),
        ("Hello.", None, []),
        ("", None, []),
    ],
)
def test_calls_are_read_in_every_form(text: str, said: str | None, calls: list[Any]) -> None:
    rest, found = read_calls(text, {"get_weather"})
    assert rest == (text if said is None else said)
    assert [call.arguments for call in found] == calls
    assert len({call.id for call in found}) == len(found)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("It is sunny in Paris.", "It is sunny in Paris."),
        (CALL, ""),
        (f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>", "Let me see."),
        ('{"a": 1} is JSON', '{"a": 1} is JSON'),
        ("1 < 2 and <tool> is no call", "1 < 2 and <tool> is no call"),
        ("cut here <tool_call>\n{", "cut here <tool_call>\n{"),
    ],
)
def test_no_piece_of_a_call_is_given_out(open_memlong: Open, text: str, pieces: str) -> None:
    tokenizer = open_memlong().engine.tokenizer
    reply = CallingText(
        tokenizer, (), lambda said, _: read_calls(said, {"get_weather"}), hold=False
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    given = [reply.push(token) for token in ids]
    streamed = "".join(given)
    assert "".join([streamed, reply.finish()]) == pieces
    if text == pieces and text[0] != "{" and "_call" not in text:
        assert len(streamed) > len(text) - 12, "plain text is not held back to the end"


# As Qwen3-Coder writes calls; only its tokenizer knows how to read them.
XML: dict[str, Any] = {
    "start_anchor": "<|assistant|>",
    "fields": {
        "content": {"content": "text"},
        "tool_calls": {
            "open_pattern": r"<function=(?P<name>\w+)>",
            "close": "</function>",
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<(?P<key>\w+)=(?P<value>[^>]*)>"},
            "transform": {"function": {"name": "{name}", "arguments": "{content}"}},
            "repeats": True,
        },
    },
}
FORECAST = {
    "type": "function",
    "function": {
        "name": "forecast",
        "parameters": {"type": "object", "properties": {"days": {"type": "integer"}}},
    },
}
MADE = "<function=forecast><days=3><place=Paris></function>"


@pytest.mark.parametrize(
    ("says", "text", "arguments"),
    [
        (MADE, "", [{"days": 3, "place": "Paris"}]),
        (f"Let me see. {MADE}", "Let me see.", [{"days": 3, "place": "Paris"}]),
        (MADE * 2, "", [{"days": 3, "place": "Paris"}] * 2),
        ("It is sunny.", "It is sunny.", []),
        (CALL, "", [{"place": "Paris"}]),
        (MADE.replace("forecast", "other"), MADE.replace("forecast", "other"), []),
    ],
)
def test_a_tokenizer_that_reads_replies_itself_is_asked_first(
    open_memlong: Open, says: str, text: str, arguments: list[Any]
) -> None:
    ml = open_memlong(model=None)
    ml.engine.tokenizer.response_template = XML
    with preferring(ml, says):
        stream = ml.respond([ASKED], tools=[FORECAST, WEATHER], max_tokens=120)
        assert "".join(stream) == text == stream.reply.text
    assert [call.arguments for call in stream.reply.tool_calls] == arguments


def test_a_reader_that_fails_leaves_the_reply_as_it_was_said(open_memlong: Open) -> None:
    ml = open_memlong(model=None)
    fields = {**XML["fields"], "thinking": {"open": "<think>", "optional": False}}
    ml.engine.tokenizer.response_template = {**XML, "fields": fields}
    with preferring(ml, MADE):
        stream = ml.respond([ASKED], tools=[FORECAST], max_tokens=120)
        assert "".join(stream) == MADE
    assert stream.reply.tool_calls == ()
