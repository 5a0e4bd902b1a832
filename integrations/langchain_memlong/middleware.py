"""`MemLongMiddleware`: long-term memory for `create_agent`, one write per finished turn.

In: an agent's model calls and its final state. Out: calls that recall, and one exchange in the
bank: the last human message and the final AI message, however many tool calls lie between. The
model itself never writes under it. Tool calls, tool results and system texts are not written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage
from langgraph.runtime import Runtime

from langchain_memlong._messages import said_last, text_of
from langchain_memlong._pool import in_pool
from langchain_memlong._routing import routed
from langchain_memlong.chat_models import ChatMemLong
from memlong_agent.errors import ConfigError

_HEADING = "From earlier conversations with this user:"


class MemLongMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Recall before each model call, one write after the finished turn.

    Under a `ChatMemLong` what is recalled goes into the attention; under another model it is added
    to the system message as text. Session and user come from the run's `configurable`, as for
    `ChatMemLong`; without any, memory is neither read nor written.

    Args:
        chat: The `ChatMemLong` whose bank is used, usually the agent's own model.
        write: False reads only.
        keep_last: Give the model only the last messages of the thread, this many at most, from a
            human message on; the bank supplies the rest. None gives it the whole thread.
        k: Most memories that another model is given as text.
    """

    def __init__(
        self,
        chat: ChatMemLong,
        *,
        write: bool = True,
        keep_last: int | None = None,
        k: int = 4,
    ) -> None:
        super().__init__()
        if keep_last is not None and keep_last < 1:
            raise ConfigError(f"keep_last={keep_last}: pass 1 or more, or None for the thread.")
        self.tools = []
        self._chat, self._write, self._keep_last, self._k = chat, write, keep_last, k

    def wrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], ModelResponse[Any]],
    ) -> ModelResponse[Any]:
        request = self._prepared(request)
        if not isinstance(request.model, ChatMemLong):
            request = self._told(request, self._ids())
        return handler(request)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        request = self._prepared(request)
        if not isinstance(request.model, ChatMemLong):
            request = await in_pool(self._told, request, self._ids())
        return await handler(request)

    def after_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> None:
        self._remember(state, self._ids())

    async def aafter_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> None:
        await in_pool(self._remember, state, self._ids())

    def _ids(self) -> dict[str, Any]:
        """Session and user of the running graph, else of the chat model."""
        ids = {"session_id": self._chat.session_id, "user_id": self._chat.user_id}
        found = routed(None, {})
        return {name: found.get(name) or own for name, own in ids.items()}

    def _prepared(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        messages = _newest(request.messages, self._keep_last)
        if not isinstance(request.model, ChatMemLong):
            return request.override(messages=messages)
        settings = {**request.model_settings, **self._ids(), "write": "off"}
        return request.override(messages=messages, model_settings=settings)

    def _told(self, request: ModelRequest[Any], ids: dict[str, Any]) -> ModelRequest[Any]:
        """The request of another model, with what is remembered as text."""
        question = said_last(request.messages)
        if not any(ids.values()) or not question.strip():
            return request
        prompt = "\n".join(text_of(message) for message in request.messages)
        found = self._chat.memlong().memories(**ids).search(question, top_k=self._k)
        told = [recall.text for recall in found if not recall.stands_in(prompt)]
        if not told:
            return request
        before = [request.system_message.text] if request.system_message else []
        text = "\n\n".join([*before, "\n- ".join([_HEADING, *told])])
        return request.override(system_message=SystemMessage(text))

    def _remember(self, state: AgentState[Any], ids: dict[str, Any]) -> None:
        messages = state["messages"]
        final = messages[-1] if messages else None
        said = said_last(messages)
        if not self._write or not any(ids.values()) or "structured_response" in state:
            return
        if not isinstance(final, AIMessage) or final.tool_calls or not said.strip():
            return
        if reply := text_of(final).strip():
            self._chat.memlong().memories(**ids).add_turn(said, reply)


def _newest(messages: Sequence[AnyMessage], most: int | None) -> list[AnyMessage]:
    """The last `most` messages from a human one on; the whole last turn when it is longer."""
    kept = list(messages)
    starts = [at for at, message in enumerate(kept) if isinstance(message, HumanMessage)]
    if most is None or not starts:
        return kept
    return kept[next((at for at in starts if len(kept) - at <= most), starts[-1]) :]
