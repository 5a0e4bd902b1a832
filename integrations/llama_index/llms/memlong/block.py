"""`MemLongMemoryBlock`: what leaves LlamaIndex's short-term `Memory` goes into the bank.

In: messages that `Memory` waterfalls, in whole turns, tagged with its session. Out: nothing under
`MemLongLLM`, which recalls into its attention by itself; under any other LLM the memories that
answer the newest user message, as text. It knows no prompt and no chat engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import Field, model_validator
from llama_index.core.memory import BaseMemoryBlock
from llama_index.llms.memlong.base import MemLongLLM
from llama_index.llms.memlong.mistakes import Careful
from llama_index.llms.memlong.translate import is_final, is_user, text_of

from memlong_agent import ConfigError

if TYPE_CHECKING:
    from memlong_agent import Memories


class MemLongMemoryBlock(Careful, BaseMemoryBlock[str]):
    """Long-term memory for LlamaIndex's `Memory`.

    Under `MemLongLLM` pass it as `llm`: model, bank and user are its own, and the memory reaches
    the model as keys and values, so that `aget` returns "". For another LLM leave `llm` out and
    pass `bank` and perhaps `user_id`: then `aget` returns the best `top_k` memories as text.

    A block serves many sessions: `Memory` names its session with every call. Without a user each
    session has a memory of its own.

    Raises:
        ConfigError: a misspelt argument, no bank, or both `llm` and what it brings.
    """

    name: str = Field(default="memlong", description="Name of the block in the prompt.")
    llm: MemLongLLM | None = Field(
        default=None, description="The engine's LLM, if it is a MemLongLLM."
    )
    model: str | Path | None = Field(
        default=None, description="Model that encodes memories; as in MemLongLLM by default."
    )
    bank: str | Path | None = Field(
        default=None, description='Folder of the bank, or ":memory:"; by default $MEMLONG_BANK.'
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="More arguments of memlong_agent.MemLong."
    )
    user_id: str | None = Field(
        default=None, description="Whose memory it is; without one it is the session's own."
    )
    top_k: int = Field(default=8, ge=1, description="Most memories given as text.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.llm is not None and self.model_fields_set & {"model", "bank", "options", "user_id"}:
            raise ValueError(
                "llm brings its own model, bank, options and user_id. Pass llm alone, or leave it "
                "out under another LLM."
            )
        self._handle()  # checks the arguments now
        return self

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex knows this class."""
        return "MemLongMemoryBlock"

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        session_id = self._session(block_kwargs.get("session_id"))
        asked = [text_of(each) for each in messages or () if is_user(each)]
        if self.llm is not None or not asked or not asked[-1].strip():
            return ""
        present = [text_of(each) for each in messages or ()]
        return await asyncio.to_thread(self._recalled, session_id, asked[-1], present)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        by_session: dict[str | None, list[ChatMessage]] = {}
        for each in messages:
            tag = each.additional_kwargs.get("session_id")
            by_session.setdefault(self._session(tag), []).append(each)
        for session_id, said in by_session.items():
            await asyncio.to_thread(self._remember, session_id, _turns(said))

    def _handle(self) -> MemLongLLM:
        """The LLM object that knows the way to the shared `MemLong`; making one loads nothing."""
        if self.llm is not None:
            return self.llm
        own = {name: getattr(self, name) for name in ("model", "bank", "options", "user_id")}
        return MemLongLLM(**{name: value for name, value in own.items() if value is not None})

    def _session(self, tagged: str | None) -> str | None:
        """The session that `Memory` names, which must be the LLM's if that is bound to one."""
        bound = self.llm.session_id if self.llm is not None else None
        if bound is not None and tagged is not None and bound != tagged:
            raise ConfigError(
                f"The block's llm belongs to session {bound!r}, but Memory to {tagged!r}: one's "
                f"turns would be written as the other's. Pass session_id={bound!r} to Memory."
            )
        return tagged if bound is None else bound

    def _memories(self, session_id: str | None) -> Memories:
        handle = self._handle()
        return handle.memlong.memories(user_id=handle.user_id, session_id=session_id)

    def _recalled(self, session_id: str | None, question: str, present: Sequence[str]) -> str:
        """Memories that are not in the prompt already, best first, one to a line or more."""
        found = self._memories(session_id).search(question, top_k=self.top_k)
        prompt = "\n".join(present)
        return "\n".join(
            f"[{each.created_at:%Y-%m-%d %H:%M}] {each.text}"
            for each in found
            if not each.stands_in(prompt)
        )

    def _remember(self, session_id: str | None, turns: Sequence[_Turn]) -> None:
        """Write each turn that the session does not hold yet."""
        memories = self._memories(session_id)
        held = {each.text for each in memories.list(session_id=session_id)}
        # A MemLongLLM that writes wrote the turn, perhaps with the reply of a later try.
        llm_writes = self.llm is not None and self.llm.write == "turn"
        for turn in turns:
            if turn.whole in held or (turn.said_in(held) and (llm_writes or not turn.answer)):
                continue
            turn.remember(memories)
            held.add(turn.whole)


@dataclass(slots=True)
class _Turn:
    """What the user said, and the final answer; either may be missing."""

    question: str = ""
    answer: str = ""

    @property
    def whole(self) -> str:
        """Its text as a memory: an exchange names who spoke, a single message does not."""
        if not (self.question and self.answer):
            return self.question or self.answer
        return f"User: {self.question}\nAssistant: {self.answer}"

    def said_in(self, held: Collection[str]) -> bool:
        """Whether a memory holds the question, whatever was answered."""
        asked = f"User: {self.question}"
        return any(text == asked or text.startswith(f"{asked}\nAssistant: ") for text in held)

    def remember(self, memories: Memories) -> None:
        """Write it; under an id of its own, so that it replaces no turn of the same words."""
        if self.question and self.answer:
            memories.add_turn(self.question, self.answer, message_id=uuid4().hex)
            return
        role = "user" if self.question else "assistant"
        memories.add([{"role": role, "content": self.question or self.answer}])


def _turns(messages: Sequence[ChatMessage]) -> list[_Turn]:
    """Whole turns: each user message with the last final answer before the next one."""
    turns: list[_Turn] = []
    for each in messages:
        text = text_of(each)
        if not text.strip():
            continue
        if is_user(each):
            turns.append(_Turn(question=text))
        elif is_final(each):
            if not turns:
                turns.append(_Turn())
            turns[-1].answer = text.strip()
    return turns
