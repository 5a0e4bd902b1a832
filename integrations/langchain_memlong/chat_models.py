"""`ChatMemLong`: a local chat model with long-term memory, for LangChain and LangGraph.

In: LangChain messages, tools, schemas, a session in the config. Out: LangChain messages with usage
and recalls. It translates and nothing else: recall, writing and constrained decoding are done by
memlong-agent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, model_validator

from langchain_memlong._background import awaited, finished
from langchain_memlong._messages import last_chunks, to_dicts, to_message
from langchain_memlong._routing import routed_turn
from langchain_memlong._settings import CONFIG, MemLongSettings, window_tokens
from langchain_memlong._structured import Method, structured
from memlong_agent import __version__
from memlong_agent.memlong import Stream, background


class ChatMemLong(MemLongSettings, BaseChatModel):
    """A local chat model that remembers. Cheap to construct: weights load at the first call.

    The session comes from the call (`session_id=`, `user_id=`), else from the config's
    `configurable` (`memlong_session_id`, `session_id` or `thread_id`; `user_id` or
    `langgraph_user_id`), else from the constructor. Without any, memory is neither read nor
    written. A call with a session writes its last exchange once, unless `write="off"`, a schema is
    asked for, or the model called a tool.

        chat = ChatMemLong(bank="./memory")
        alice = {"configurable": {"session_id": "chat-1", "user_id": "alice"}}
        chat.invoke("My dog is called Rex.", alice)
        chat.invoke("What is my dog called?", alice).response_metadata["memlong"]["recalls"]

    Raises ConfigError for unknown arguments, UnsupportedModelError for an unknown model.
    """

    model_config = CONFIG

    streaming: bool = False

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        return ["langchain_memlong", "chat_models"]

    @model_validator(mode="after")
    def _set_memlong_version(self) -> Self:
        self._add_version("langchain-memlong", __version__)
        return self

    @property
    def _llm_type(self) -> str:
        return "memlong-chat"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = "memlong"
        return params

    def _resolve_model_profile(self) -> ModelProfile:
        profile = ModelProfile(
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            tool_calling=True,
            tool_choice=True,
            structured_output=True,
            reasoning_output=False,
            open_weights=True,
        )
        if (limit := window_tokens(self.model, self.options)) is not None:
            profile["max_input_tokens"] = limit
        return profile

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        return super().invoke(input, config, stop=stop, **routed_turn(config, kwargs))

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        return await super().ainvoke(input, config, stop=stop, **routed_turn(config, kwargs))

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        yield from super().stream(input, config, stop=stop, **routed_turn(config, kwargs))

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        chunks = super().astream(input, config, stop=stop, **routed_turn(config, kwargs))
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]  # an async generator

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """As LangChain's; every version finds the session in the config."""
        return super().stream_events(input, config, **routed_turn(config, kwargs))

    def astream_events(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """As LangChain's; every version finds the session in the config."""
        return super().astream_events(input, config, **routed_turn(config, kwargs))

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call tools.

        `tool_choice` is "auto", "none", "any" (some call is forced) or a tool's name (that call is
        forced). Arguments of forced calls always fit their schema, whatever `strict` says.
        """
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        return self.bind(tools=[convert_to_openai_tool(each) for each in tools], **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Replies that are objects of `schema`: decoding is constrained, so they always fit.

        `json_schema` and `json_mode` constrain the reply, `function_calling` forces a tool call;
        `json_mode` without a schema gives any JSON object. `strict` changes nothing. Nothing is
        written. Raises ConfigError when `max_tokens` cannot hold a whole object.
        """
        return structured(self, schema, method, include_raw, kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = finished(self._begin(messages, stop, kwargs))
        message = to_message(reply, self._name(kwargs))
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = await awaited(self._begin(messages, stop, kwargs))
        message = to_message(reply, self._name(kwargs))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        stream = self._begin(messages, stop, kwargs)
        try:
            for piece in stream:
                yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
        finally:
            stream.close()
        for chunk in last_chunks(stream.reply, self._name(kwargs)):
            yield ChatGenerationChunk(message=chunk)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        stream = background(self._begin(messages, stop, kwargs))
        try:
            async for piece in stream:
                yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
        finally:
            await stream.aclose()
        for chunk in last_chunks(stream.reply, self._name(kwargs)):
            yield ChatGenerationChunk(message=chunk)

    def _begin(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> Stream:
        return self._reply(to_dicts(messages), stop, kwargs)

    def _name(self, kwargs: dict[str, Any]) -> str:
        return str(kwargs.get("model") or self.model)
