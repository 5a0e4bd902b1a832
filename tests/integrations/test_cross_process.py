"""One memory for both frameworks: told through LangChain, asked through LlamaIndex.

Two processes share nothing but the bank's folder; the answer is not among the token ids of the
second one's prompt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
TELL = """
from langchain_memlong import ChatMemLong
chat = ChatMemLong(bank=BANK, options=OPTIONS, max_tokens=16)
monday = {"configurable": {"session_id": "monday", "user_id": "alice"}}
reply = chat.invoke("My dog is called Rex.", monday)
show(text=reply.text)
"""
ASK = """
from llama_index.core.llms import ChatMessage
from llama_index.llms.memlong import MemLongLLM
llm = MemLongLLM(bank=BANK, options=OPTIONS, max_tokens=16)
respond, streams = llm.memlong.respond, []

def watched(*arguments, **options):  # the real call, whose prompt is looked at afterwards
    streams.append(respond(*arguments, **options))
    return streams[-1]

llm.memlong.respond = watched
question = [ChatMessage(role="user", content="What is my dog called?")]
found = llm.with_session("friday", user_id=USER).chat(question)
(stream,) = streams
tokenizer = llm.memlong.engine.tokenizer
show(
    text=found.message.content,
    recalls=found.raw["memlong"]["recalls"],
    prompt=tokenizer.decode(list(stream.reply.prompt_ids)),
    prompt_ids=stream.reply.prompt_ids,
    answer_ids=[tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" Rex", "Rex")],
)
"""
COMMON = """
import json, os, sys
BANK, USER, OPTIONS = sys.argv[1], sys.argv[2], {"embedder": "hash"}

def show(**found):
    print(json.dumps({**found, "pid": os.getpid()}))
"""


def process(code: str, bank: Path, user: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", COMMON + code, str(bank), user],
        env={**os.environ, "PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def holds(ids: list[int], part: list[int]) -> bool:
    return any(ids[at : at + len(part)] == part for at in range(len(ids)))


def test_told_through_langchain_answered_through_llama_index(tmp_path: Path) -> None:
    told = process(TELL, tmp_path / "bank", "alice")
    asked = process(ASK, tmp_path / "bank", "alice")
    assert told["pid"] != asked["pid"]
    assert "Rex" in asked["text"]
    (recall,) = asked["recalls"]
    assert recall["text"].startswith("My dog is called Rex.")
    assert recall["session_id"] == "monday"
    assert "Rex" not in asked["prompt"] and "What is my dog called?" in asked["prompt"]
    assert not any(holds(asked["prompt_ids"], answer) for answer in asked["answer_ids"])

    other = process(ASK, tmp_path / "bank", "bob")
    assert "Rex" not in other["text"] and other["recalls"] == []
