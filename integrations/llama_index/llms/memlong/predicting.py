"""What `predict`, `stream` and structured output may write: nothing, but for an engine's own turn.

LlamaIndex routes both its utility prompts and the answers of ContextChatEngine and
CondensePlusContextChatEngine through `predict` and `stream`, and these through `chat`. A turn of an
engine is told apart by its prompt: the last message is what the user said and nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.llms.types import MessageRole
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import BasePromptTemplate, ChatPromptTemplate, PromptTemplate
from llama_index.core.types import PydanticProgramMode, TokenAsyncGen, TokenGen

if TYPE_CHECKING:
    from pydantic import BaseModel

_VERBATIM = "{query_str}"  # llama_index.core.chat_engine.utils.get_prefix_messages_with_context
_CALLS_TOOLS = (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION)


def is_turn(prompt: BasePromptTemplate) -> bool:
    """Whether a prompt is a chat engine's: it ends with the user's own words, untouched."""
    if not isinstance(prompt, ChatPromptTemplate) or not prompt.message_templates:
        return False
    last = prompt.message_templates[-1]
    return last.role == MessageRole.USER and last.content == _VERBATIM


class ReadingPredictions(FunctionCallingLLM):
    """The prompt-based half of an LLM, which reads memory but leaves writing to turns."""

    @abstractmethod
    def reading(self) -> Self:
        """A handle that recalls but writes nothing."""

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """The reply to a filled-in prompt; writes the turn of a chat engine only."""
        return super(ReadingPredictions, self._for(prompt)).predict(prompt, **prompt_args)

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """As `predict`."""
        handle = self._for(prompt)
        return await super(ReadingPredictions, handle).apredict(prompt, **prompt_args)

    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        """As `predict`, piece by piece."""
        return super(ReadingPredictions, self._for(prompt)).stream(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        """As `stream`."""
        handle = self._for(prompt)
        return await super(ReadingPredictions, handle).astream(prompt, **prompt_args)

    def structured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """An `output_cls` filled in by the model; always valid, never written."""
        return super(ReadingPredictions, self.reading()).structured_predict(
            output_cls, prompt, llm_kwargs, **prompt_args
        )

    async def astructured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """As `structured_predict`."""
        return await super(ReadingPredictions, self.reading()).astructured_predict(
            output_cls, prompt, llm_kwargs, **prompt_args
        )

    def _structured_stream_call(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        program = self._program(output_cls, prompt)
        found: Generator[Any, None, None]
        found = program.stream_call(llm_kwargs=llm_kwargs, **prompt_args)
        return found

    async def _structured_astream_call(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        program = self._program(output_cls, prompt)
        found: AsyncGenerator[Any, None]
        found = await program.astream_call(llm_kwargs=llm_kwargs, **prompt_args)
        return found

    def _program(self, output_cls: type[BaseModel], prompt: PromptTemplate) -> Any:
        """LlamaIndex's program, which alone would leave it to the model whether to call at all."""
        from llama_index.core.program.utils import get_program_for_llm

        mode = self.pydantic_program_mode
        forced = {"tool_choice": "any"} if mode in _CALLS_TOOLS else {}
        return get_program_for_llm(output_cls, prompt, self.reading(), mode, **forced)

    def _for(self, prompt: BasePromptTemplate) -> Self:
        return self if is_turn(prompt) else self.reading()
