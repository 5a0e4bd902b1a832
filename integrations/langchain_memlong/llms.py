"""`MemLongLLM`: plain text in, plain text out, for completion chains.

In: a prompt. Out: its completion, as the reply to one user message. With a session it remembers
prompt and completion, unless `write="off"`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LLM, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.outputs import GenerationChunk
from langchain_core.runnables import Runnable, RunnableConfig

from langchain_memlong._background import awaited, finished
from langchain_memlong._messages import metadata
from langchain_memlong._routing import routed_turn
from langchain_memlong._settings import CONFIG, MemLongSettings
from memlong_agent.memlong import Stream, background


class MemLongLLM(MemLongSettings, LLM):
    """A local model that completes texts and remembers; session and errors as in `ChatMemLong`."""

    model_config = CONFIG

    @property
    def _llm_type(self) -> str:
        return "memlong"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = "memlong"
        return params

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> str:
        return super().invoke(input, config, stop=stop, **routed_turn(config, kwargs))

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> str:
        return await super().ainvoke(input, config, stop=stop, **routed_turn(config, kwargs))

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[str]:
        yield from super().stream(input, config, stop=stop, **routed_turn(config, kwargs))

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[str]:
        pieces = super().astream(input, config, stop=stop, **routed_turn(config, kwargs))
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]  # an async generator

    def batch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[str]:
        """Each input under its own config: LLM's own batch would lose the sessions."""
        return Runnable.batch(self, inputs, config, **kwargs)

    async def abatch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[str]:
        """As :meth:`batch`."""
        return await Runnable.abatch(self, inputs, config, **kwargs)

    def _call(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> str:
        return finished(self._begin(prompt, stop, kwargs)).text

    async def _acall(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> str:
        return (await awaited(self._begin(prompt, stop, kwargs))).text

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        stream = self._begin(prompt, stop, kwargs)
        try:
            for piece in stream:
                if run_manager is not None:
                    run_manager.on_llm_new_token(piece)
                yield GenerationChunk(text=piece)
        finally:
            stream.close()
        info = metadata(stream.reply, str(kwargs.get("model") or self.model))
        yield GenerationChunk(text="", generation_info=info)

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        stream = background(self._begin(prompt, stop, kwargs))
        try:
            async for piece in stream:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(piece)
                yield GenerationChunk(text=piece)
        finally:
            await stream.aclose()
        info = metadata(stream.reply, str(kwargs.get("model") or self.model))
        yield GenerationChunk(text="", generation_info=info)

    def _begin(self, prompt: str, stop: list[str] | None, kwargs: dict[str, Any]) -> Stream:
        return self._reply([{"role": "user", "content": prompt}], stop, kwargs)
