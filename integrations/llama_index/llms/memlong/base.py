"""`MemLongLLM`: LlamaIndex's function-calling LLM interface over `MemLong.respond`.

In: messages, prompts and tools from engines, agents and programs. Out: responses, whole or piece by
piece, sync or truly async. It holds the settings and decides what a call may write; how memory is
kept and how text is made it does not know. Torch and weights load with the first reply.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import Field, field_validator
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import ToolSelection
from llama_index.llms.memlong.calls import Call, awhole, respond_arguments, whole
from llama_index.llms.memlong.mistakes import Careful
from llama_index.llms.memlong.predicting import ReadingPredictions
from llama_index.llms.memlong.translate import choice_in, completion_out, messages_in, selections
from llama_index.llms.memlong.window import BUNDLED, window_tokens

from memlong_agent import ConfigError
from memlong_agent.memlong import shared

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

    from memlong_agent import MemLong

_FOR_EACH_CALL = (
    "session_id", "user_id", "temperature", "max_tokens", "top_p", "seed", "stop",
)  # fmt: skip


class MemLongLLM(Careful, ReadingPredictions):
    """A local model whose memory survives the process, behind LlamaIndex's LLM interface.

    One object serves many conversations: `llm.with_session("chat-1", user_id="alice")` is a cheap
    handle on the same weights and bank. Without a session and a user the memory is neither read nor
    written. `chat` and `stream_chat` (and their async twins) write a finished turn: the last user
    message and the final answer. Completions, predictions and structured output only read.

    Every call takes the sampling arguments (`temperature`, `max_tokens`, `top_p`, `sample_top_k`,
    `seed`, `stop`), `session_id`, `user_id`, `write`, `memory=False` and `message_id`, too.

    Raises:
        ConfigError: a misspelt argument, or no bank.
    """

    model: str = Field(
        default_factory=lambda: os.environ.get("MEMLONG_MODEL", BUNDLED),
        description="Hub name or folder; by default $MEMLONG_MODEL, or the bundled memlong-tiny.",
    )
    bank: str = Field(
        default_factory=lambda: os.environ.get("MEMLONG_BANK", ""),
        description='Folder of the bank, or ":memory:"; by default $MEMLONG_BANK.',
        validate_default=True,
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="More arguments of memlong_agent.MemLong: embedder, device, top_k, ...",
    )
    session_id: str | None = Field(default=None, description="Where turns belong.")
    user_id: str | None = Field(
        default=None, description="Whose memory it is; without one it is the session's own."
    )
    write: Literal["turn", "off"] = Field(
        default="turn", description='"turn" writes finished turns, "off" only reads.'
    )
    citations: bool = Field(
        default=True, description="Put what was recalled into the answer as CitationBlocks."
    )
    temperature: float = Field(default=0.0, ge=0.0, description="0 takes the likeliest token.")
    max_tokens: int = Field(default=256, ge=1, description="Most tokens of a reply.")
    top_p: float = Field(
        default=1.0, gt=0.0, le=1.0, description="Share of probability that is kept."
    )
    seed: int | None = Field(default=None, description="Repeats a sampled reply.")
    stop: list[str] = Field(default_factory=list, description="Texts that end a reply.")
    context_window: int | None = Field(
        default=None, ge=64, description="Tokens engines may fill; by default the live window."
    )

    @field_validator("model", "bank", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("bank")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value:
            raise ValueError(
                'There is no bank. Pass bank="./memory" or set MEMLONG_BANK; '
                'bank=":memory:" keeps nothing on disk.'
            )
        return value

    @field_validator("session_id", "user_id")
    @classmethod
    def _somebody(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("An empty session_id or user_id names nobody. Leave it out.")
        return value

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serializes this class."""
        return "MemLongLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What engines ask; reads the model's configuration at most, never its weights."""
        return LLMMetadata(
            context_window=self.context_window or window_tokens(self.model, self.options),
            num_output=self.max_tokens,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model,
        )

    @property
    def memlong(self) -> MemLong:
        """The process's one `MemLong` for this model, bank and options; loaded at first use."""
        return shared(None if self.model == BUNDLED else self.model, self.bank, **self.options)

    def with_session(
        self,
        session_id: str,
        user_id: str | None = None,
        *,
        write: Literal["turn", "off"] | None = None,
    ) -> Self:
        """A handle on the same weights and bank that reads and writes this session's memory.

        With a user (this one, or that of the handle it is made from) the memory is the user's, in
        all of their sessions; without, this session's alone.
        """
        changed = {
            "session_id": session_id,
            "user_id": self.user_id if user_id is None else user_id,
            "write": write or self.write,
        }
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**fields, **changed})

    def reading(self) -> Self:
        """A handle that recalls but writes nothing: for a framework's utility calls."""
        return self.model_copy(update={"write": "off"})

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """One reply; with a session, the turn is written before this returns."""
        return whole(self._call(messages, kwargs).responses())

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The reply as it is made; closing the generator cancels it, and nothing is written."""
        return self._call(messages, kwargs).responses()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`, on a worker thread; cancelling the task cancels the turn."""
        return await awhole(self._call(messages, kwargs).aresponses())

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """As `stream_chat`, on a worker thread."""
        return self._call(messages, kwargs).aresponses()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The reply to a prompt; reads the memory at most."""
        return completion_out(whole(self._completion(prompt, kwargs).responses()))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """The reply to a prompt as it is made; reads the memory at most."""
        responses = self._completion(prompt, kwargs).responses()
        return (completion_out(each) for each in responses)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """As `complete`, on a worker thread."""
        return completion_out(await awhole(self._completion(prompt, kwargs).aresponses()))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """As `stream_complete`, on a worker thread."""
        responses = self._completion(prompt, kwargs).aresponses()
        return (completion_out(each) async for each in responses)

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls a response asks for. Raises ConfigError (a ValueError) where there is none."""
        calls = selections(response)
        if not calls and error_on_no_tool_call:
            raise ConfigError(
                "The model called no tool. Pass tool_required=True, so that it must call one."
            )
        return calls

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        return {
            "messages": [*(chat_history or []), *([user_msg] if user_msg else [])],
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "tool_choice": choice_in(tool_choice, tool_required),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def _call(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> Call:
        given = {name: getattr(self, name) for name in _FOR_EACH_CALL}
        arguments = respond_arguments(given, kwargs, self.write)
        whose = (arguments["user_id"], arguments["session_id"])
        ordered = arguments["write"] and arguments["session_id"] is not None
        return Call(
            load=lambda: self.memlong,
            messages=messages_in(messages),
            lane=(self.model, self.bank, *whose) if ordered else None,
            citations=self.citations,
            parallel=arguments.pop("parallel_tool_calls", True),
            arguments=arguments,
        )

    def _completion(self, prompt: str, kwargs: Mapping[str, Any]) -> Call:
        if kwargs.get("write") == "turn":
            raise ConfigError('A completion is never written. Leave out write="turn", or use chat.')
        message = ChatMessage(role=MessageRole.USER, content=prompt)
        return self._call([message], {**kwargs, "write": "off"})
