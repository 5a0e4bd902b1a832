"""A LlamaIndex chat engine that remembers after a restart: told in one process, asked in another.

    python examples/llama_index_chat.py                    the bundled model, a temporary bank
    python examples/llama_index_chat.py --bank ./memory --model Qwen/Qwen3-4B-Instruct-2507

The second process starts with an empty chat history: what it knows came from the bank, into the
attention. Each process runs this file with `--say`; another user recalls nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import Memory
from llama_index.llms.memlong import MemLongLLM, MemLongMemoryBlock

FACTS = ["My dog is called Rex.", "My favorite color is teal."]
QUESTIONS = ["What is my dog called?", "What is my favorite color?"]


def chat_engine(llm: MemLongLLM) -> SimpleChatEngine:
    """The newest turns stay in the prompt; older ones leave it and are recalled."""
    memory = Memory.from_defaults(
        session_id=llm.session_id, token_limit=600, memory_blocks=[MemLongMemoryBlock(llm=llm)]
    )
    return SimpleChatEngine.from_defaults(llm=llm, memory=memory)


def talk(llm: MemLongLLM, sentences: list[str]) -> None:
    engine = chat_engine(llm)
    for sentence in sentences:
        print(f"  {llm.user_id}, {llm.session_id}> {sentence}\n    ", end="")
        for piece in engine.stream_chat(sentence).response_gen:
            print(piece, end="", flush=True)
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description="A LlamaIndex chat engine that remembers.")
    parser.add_argument("--bank", help="folder of the bank; default: a temporary one")
    parser.add_argument("--model", default="memlong-tiny", help="Hub name or folder")
    parser.add_argument("--user", default="alice")
    parser.add_argument("--session", default="monday")
    parser.add_argument("--say", nargs="+", help="sentences of one conversation, in this process")
    asked = parser.parse_args()
    if asked.say:
        llm = MemLongLLM(model=asked.model, bank=asked.bank, max_tokens=64)
        talk(llm.with_session(asked.session, user_id=asked.user), asked.say)
        return
    with tempfile.TemporaryDirectory() as folder:
        bank = asked.bank or os.path.join(folder, "bank")
        here = [sys.executable, __file__, "--bank", bank, "--model", asked.model]
        for user, session, sentences in [
            ("alice", "monday", FACTS), ("alice", "friday", QUESTIONS), ("bob", "friday", QUESTIONS)
        ]:  # fmt: skip
            print(f"A new process, {user}'s {session}:", flush=True)
            whose = ["--user", user, "--session", session]
            subprocess.run([*here, *whose, "--say", *sentences], check=True)


if __name__ == "__main__":
    main()
