"""A LangChain chain with long-term memory: told in one conversation, asked in another.

    python examples/langchain_chat.py                      the bundled model, a temporary bank
    python examples/langchain_chat.py --bank ./memory --model Qwen/Qwen3-4B-Instruct-2507

Nothing is sent again: the second conversation's prompt holds the question only, and what was told
is recalled into the attention. Another user recalls nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig
from langchain_memlong import ChatMemLong

FACTS = ["My dog is called Rex.", "My favorite color is teal."]
QUESTIONS = ["What is my dog called?", "What is my favorite color?"]


def conversation(user: str, session: str) -> RunnableConfig:
    """Whose memory a call uses; `thread_id` works too."""
    return {"configurable": {"user_id": user, "session_id": session}}


def run(chat: ChatMemLong) -> None:
    chain = ChatPromptTemplate.from_messages([("user", "{text}")]) | chat | StrOutputParser()
    monday, friday = conversation("alice", "monday"), conversation("alice", "friday")

    for fact in FACTS:
        print("alice, monday>", fact)
        print("             <", chain.invoke({"text": fact}, monday))
    for question in QUESTIONS:
        print("alice, friday>", question)
        print("             < ", end="")
        for piece in chain.stream({"text": question}, friday):
            print(piece, end="", flush=True)
        print()

    print("bob, friday  >", QUESTIONS[0])
    print("             <", chain.invoke({"text": QUESTIONS[0]}, conversation("bob", "friday")))

    reply = chat.invoke(QUESTIONS[0], conversation("alice", "sunday"))
    usage: Any = reply.usage_metadata
    print("\nWhere the last answer came from:", usage["input_token_details"]["cache_read"], "of",
          usage["input_tokens"], "input tokens were read from the bank.")  # fmt: skip
    for recall in reply.response_metadata["memlong"]["recalls"]:
        text = recall["text"].replace("\n", " | ")
        print(f"  {recall['score']:.2f}  {recall['session_id']}  {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description="A LangChain chain with long-term memory.")
    parser.add_argument("--bank", help="folder of the bank; default: a temporary one")
    parser.add_argument("--model", default="memlong-tiny", help="Hub name or folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(ChatMemLong(model=asked.model, bank=asked.bank or folder + "/bank", max_tokens=64))


if __name__ == "__main__":
    main()
