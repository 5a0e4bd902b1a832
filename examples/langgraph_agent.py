"""A LangGraph agent with a tool, a checkpointer and a store, all memory in one bank.

    python examples/langgraph_agent.py                     the bundled model, a temporary bank
    python examples/langgraph_agent.py --bank ./memory --model Qwen/Qwen3-4B-Instruct-2507

The bundled model cannot choose tools, so `LookWhenAsked` does; constrained decoding makes the call
valid. Drop it for a model that can choose.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from typing import Any, Literal

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.tools import tool
from langchain_memlong import ChatMemLong, MemLongMiddleware, MemLongStore
from langgraph.checkpoint.memory import InMemorySaver

TURNS = [
    ("monday", "My dog is called Rex."),
    ("monday", "What time is it?"),
    ("friday", "What is my dog called?"),
    ("friday", "What is my cat called?"),
]


@tool
def clock(zone: Literal["UTC", "CET"]) -> str:
    """Tell the time in a zone."""
    return f"It is noon in {zone}."


class LookWhenAsked(AgentMiddleware):
    """A question for the time forces a tool call; nothing else sees the tools."""

    def wrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        if "time" in request.messages[-1].text:
            return handler(request.override(tool_choice="any"))
        return handler(request.override(tools=[]))


def run(model: str, bank: str) -> None:
    chat, store = ChatMemLong(model=model, bank=bank), MemLongStore(bank, model=model)
    store.put(("memories", "alice"), "cat", {"text": "My cat is called Tom."})  # recalled too
    layers = [MemLongMiddleware(chat, keep_last=1), LookWhenAsked()]
    agent = create_agent(
        chat, tools=[clock], middleware=layers, checkpointer=InMemorySaver(), store=store
    )
    for thread, text in TURNS:
        config: Any = {"configurable": {"thread_id": thread, "user_id": "alice"}}
        state = agent.invoke({"messages": [{"role": "user", "content": text}]}, config)
        for message in state["messages"][-4 if "time" in text else -2 :]:
            print(f"{thread} {message.type:>5}: {message.text or message.tool_calls[0]['args']}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bank", help="folder of the bank; default: a temporary one")
    parser.add_argument("--model", default="memlong-tiny", help="Hub name or folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(asked.model, asked.bank or folder + "/bank")


if __name__ == "__main__":
    main()
