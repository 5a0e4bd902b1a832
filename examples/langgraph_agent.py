"""A LangGraph agent with a tool, a checkpointer and a store, all memory in one bank.

    python examples/langgraph_agent.py                     the bundled model, a temporary bank
    python examples/langgraph_agent.py --bank ./memory --model Qwen/Qwen3-4B-Instruct-2507

The bundled model is too small to choose tools, so `MustLook` forces a call; constrained decoding
makes it valid with any model. Drop it for a model that can choose.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from typing import Any, Literal

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_memlong import ChatMemLong, MemLongMiddleware, MemLongStore
from langgraph.checkpoint.memory import InMemorySaver


@tool
def clock(zone: Literal["UTC", "CET"]) -> str:
    """Tell the time in a zone."""
    return f"It is noon in {zone}."


class MustLook(AgentMiddleware):
    """One tool call at the beginning of each turn, then an answer in words."""

    def wrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        first = isinstance(request.messages[-1], HumanMessage)
        return handler(request.override(tool_choice="any" if first else "none"))


def run(model: str, bank: str) -> None:
    chat, store = ChatMemLong(model=model, bank=bank), MemLongStore(bank, model=model)
    store.put(("memories", "alice"), "cat", {"text": "My cat is called Tom."})
    agent = create_agent(
        chat,
        tools=[clock],
        middleware=[MemLongMiddleware(chat, keep_last=4), MustLook()],  # one write per turn
        checkpointer=InMemorySaver(),  # short-term: the thread
        store=store,  # long-term: items, recalled because the namespace names the user
    )
    for thread, text in (
        ("monday", "My dog is called Rex."),
        ("friday", "What is my dog called?"),
        ("friday", "What is my cat called?"),
    ):
        config: Any = {"configurable": {"thread_id": thread, "user_id": "alice"}}
        state = agent.invoke({"messages": [HumanMessage(text)]}, config)
        for message in state["messages"][-4:]:
            print(f"{thread} {message.type:>5}: {message.text or message.tool_calls[0]['args']}")


def main() -> None:
    parser = argparse.ArgumentParser(description="A LangGraph agent whose memory is one bank.")
    parser.add_argument("--bank", help="folder of the bank; default: a temporary one")
    parser.add_argument("--model", default="memlong-tiny", help="Hub name or folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(asked.model, asked.bank or folder + "/bank")


if __name__ == "__main__":
    main()
