"""LangChain's own suites: every item on memlong-tiny, with the real engine and real constraints.

A script (what the model would like to say) is given only to items that need a model which knows
what it is asked; it goes through the real sampler under the real constraint. README.md of the
package lists the results by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.retrievers import BaseRetriever
from langchain_memlong import ChatMemLong, MemLongRetriever
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from lc_helpers import ASKED, PLACE, TOLD, of

from memlong_agent.layout import MemoryLayout
from memlong_agent.testing import preferring, tiny_checkpoint

SCRIPTS = {
    "test_tool_calling": '{"name": "magic_function", "arguments": {"input": 3}}',
    "test_tool_calling_async": '{"name": "magic_function", "arguments": {"input": 3}}',
    "test_bind_runnables_as_tools": (
        '{"name": "greeting_generator", "arguments": {"answer_style": "Pirate"}}'
    ),
    "test_agent_loop": '{"name": "get_weather", "arguments": {"location": "San Francisco, CA"}}',
    "test_unicode_tool_call_integration": (
        '{"name": "unicode_customer", "arguments": '
        '{"customer_name": "你好啊集团 こんにちは株式会社", "description": "Hello"}}'
    ),
}
Details = dict[Literal["invoke", "stream"], list[Any]]
pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")


@cache
def other_model() -> str:
    """A model with random weights, for calls that name another one."""
    folder = Path(mkdtemp(prefix="memlong-"))
    return str(tiny_checkpoint(folder, layout=MemoryLayout.memlong(4)))


class TestChatMemLongUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatMemLong

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return PLACE

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        """Without `api_key`: there is none, and unknown arguments are refused."""
        given = super().standard_chat_model_params
        return {name: value for name, value in given.items() if name != "api_key"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        expected = {"model": "./some-model", "bank": "./some-bank"}
        return {"MEMLONG_MODEL": "./some-model", "MEMLONG_BANK": "./some-bank"}, {}, expected


class TestChatMemLongIntegration(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def scripted(self, request: pytest.FixtureRequest) -> Iterator[None]:
        with ExitStack() as stack:
            if script := SCRIPTS.get(request.function.__name__):
                stack.enter_context(preferring(ChatMemLong(**PLACE).memlong(), script))
            yield

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatMemLong

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return PLACE

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return other_model()

    @property
    def supported_usage_metadata_details(self) -> Details:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        chat = ChatMemLong(**PLACE)
        chat.invoke(TOLD, of("usage", "first"))
        if not stream:
            return chat.invoke(ASKED, of("usage", "second"))
        whole: AIMessageChunk | None = None
        for chunk in chat.stream(ASKED, of("usage", "third")):
            whole = chunk if whole is None else whole + chunk
        assert whole is not None and whole.usage_metadata is not None
        assert whole.usage_metadata["input_token_details"]["cache_read"] > 0
        return whole


class TestMemLongRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def memories(self) -> None:
        kept = ChatMemLong(**PLACE).memlong().memories(user_id="reader")
        if not kept.list():
            for animal in ("dog", "cat", "hen", "cow"):
                kept.add(f"My {animal} is called Rex.")

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return MemLongRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {**PLACE, "user_id": "reader"}

    @property
    def retriever_query_example(self) -> str:
        return "Which animal is called Rex?"
