"""What goes wrong says what to do; what is not needed is not loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_memlong import ChatMemLong, MemLongMiddleware, MemLongRetriever, MemLongStore
from langchain_memlong._messages import to_dicts
from lc_helpers import PLACE

from memlong_agent import ConfigError, MemLongError, UnsupportedModelError

ROOT = Path(__file__).parents[3]
IMAGE = HumanMessage([{"type": "image", "base64": "AAAA", "mime_type": "image/png"}])
Mistake = Callable[[Callable[..., ChatMemLong]], Any]

MISTAKES: dict[str, tuple[Mistake, str]] = {
    "misspelt field": (lambda make: make(temprature=0), "'temprature'. Did you mean 'temperature'"),
    "unlike any field": (lambda make: make(zzz=0), "Unknown argument 'zzz'. Use one of: .*bank"),
    "impossible field": (lambda make: make(temperature=-1), "temperature=-1.*Correct temperature"),
    "misspelt in a call": (lambda make: make().invoke("Hi", max_token=3), "Did you mean 'max_to"),
    "misspelt bind": (lambda make: make().bind(sesion_id="a").invoke("Hi"), "'session_id'"),
    "impossible in a call": (lambda make: make().invoke("Hi", top_p=7), "top_p=7"),
    "unknown write": (lambda make: make().invoke("Hi", write="always"), "'turn' or 'off'"),
    "no bank": (lambda make: make(bank=None).invoke("Hi"), "needs a bank"),
    "unknown option": (lambda make: make(options={"top_j": 1}).invoke("Hi"), "top_j"),
    "an image": (lambda make: make().invoke([IMAGE]), "reads text only.*'image'"),
    "no message": (lambda make: make().invoke([]), "no messages"),
    "an unknown role": (lambda make: make().invoke([ChatMessage("x", role="cat")]), "'cat'"),
    "a removal": (lambda make: make().invoke([RemoveMessage(id="1")]), "RemoveMessage"),
    "no schema": (lambda make: make().with_structured_output(), "needs a schema"),
    "unknown method": (
        lambda make: make().with_structured_output({}, method="magic"),
        "method='magic'",
    ),
    "misspelt structure": (lambda make: make().with_structured_output({}, metod=1), "'metod'"),
    "not a schema": (lambda make: make().invoke("Hi", response_format=7), "7 is no schema"),
    "nobody's memories": (lambda make: MemLongRetriever(**PLACE).invoke("Hi"), "Whose memories"),
    "no session": (
        lambda make: MemLongRetriever(**PLACE, scope="session", user_id="a").invoke("Hi"),
        "needs a session",
    ),
    "no user in the template": (
        lambda make: MemLongStore(**PLACE, owner_template=("memories",)),
        "exactly one label",
    ),
    "nothing kept": (lambda make: MemLongMiddleware(make(), keep_last=0), "keep_last=0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_sentence(
    make_chat: Callable[..., ChatMemLong], mistake: str
) -> None:
    make, says = MISTAKES[mistake]
    with pytest.raises(ConfigError, match=says):
        make(make_chat)


def test_an_unknown_model_is_named(make_chat: Callable[..., ChatMemLong]) -> None:
    for call in (
        lambda: make_chat(model="./no/such/model").invoke("Hi"),
        lambda: make_chat().invoke("Hi", model="./no/such/model"),
    ):
        with pytest.raises(UnsupportedModelError, match="no/such/model"):
            call()


async def test_an_error_of_the_worker_reaches_the_caller(
    make_chat: Callable[..., ChatMemLong],
) -> None:
    chat = make_chat()
    with pytest.raises(ConfigError, match="top_p=7"):
        await chat.ainvoke("Hi", top_p=7)
    with pytest.raises(ConfigError, match="max_token"):
        async for _ in chat.astream("Hi", max_token=3):
            pass
    results = await chat.abatch(["Hi", []], return_exceptions=True)
    assert isinstance(results[0], AIMessage) and isinstance(results[1], MemLongError)


def test_messages_keep_roles_names_calls_and_text_blocks() -> None:
    call = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}
    blocks = [{"type": "text", "text": "so"}, {"type": "tool_use", "id": "c1", "name": "add"}, "me"]
    found = to_dicts(
        [
            ChatMessage("rules", role="developer"),
            HumanMessage("hello", name="ann"),
            AIMessage(blocks, tool_calls=[call]),
            ToolMessage([{"type": "text", "text": "3"}], tool_call_id="c1", name="add"),
        ]
    )
    assert found == [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "hello", "name": "ann"},
        {
            "role": "assistant",
            "content": "some",
            "tool_calls": [{"id": "c1", "name": "add", "arguments": {"a": 1}}],
        },
        {"role": "tool", "content": "3", "name": "add", "tool_call_id": "c1"},
    ]


def python(code: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), str(ROOT / "integrations")]
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_and_constructing_load_no_torch() -> None:
    done = python(
        "from langchain_memlong import *\n"
        'chat = ChatMemLong(bank="./b"); chat.bind_tools([]); MemLongStore("./b")\n'
        'MemLongLLM(bank="./b"); MemLongRetriever(bank="./b"); MemLongMiddleware(chat)\n'
        'print([name for name in ("torch", "transformers", "sqlalchemy") if name in sys.modules])\n'
        'import memlong_agent.kv; print("torch" in sys.modules)'
    )
    assert done.stdout.split("\n")[:2] == ["[]", "True"], done.stderr


@pytest.mark.parametrize(
    ("missing", "name"),
    [
        ("langchain_core", "ChatMemLong"),
        ("langchain", "MemLongMiddleware"),
        ("langgraph", "MemLongStore"),
    ],
)
def test_without_the_extra_one_sentence_says_what_to_install(missing: str, name: str) -> None:
    done = python(f"sys.modules[{missing!r}] = None\nfrom langchain_memlong import {name}")
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith(f"memlong_agent.errors.ConfigError: {name} needs {missing}")
    assert last.endswith('Run: pip install "memlong-agent[langchain]"')


def test_a_thousand_models_are_cheap_and_share_one_engine(
    make_chat: Callable[..., ChatMemLong],
) -> None:
    chats = [make_chat() for _ in range(1000)]
    assert len({id(chat.memlong()) for chat in chats}) == 1


def test_every_name_is_exported_and_no_other() -> None:
    import langchain_memlong

    for name in langchain_memlong.__all__:
        assert getattr(langchain_memlong, name) is not None
    with pytest.raises(AttributeError, match="ChatLong"):
        langchain_memlong.ChatLong  # noqa: B018
