"""The first awaited call of a process imports torch, and not on the event loop's thread."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
WATCH = """
import asyncio, sys, threading

class Watch:  # asked for every module before it is loaded
    seen = []

    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers"):
            self.seen.append(threading.current_thread().name)

sys.meta_path.insert(0, Watch())
OPTIONS = dict(bank=":memory:", options={"embedder": "hash"}, max_tokens=1)
"""
LANGCHAIN = """
from langchain_memlong import ChatMemLong
asyncio.run(ChatMemLong(**OPTIONS).ainvoke("Hello"))
print(sorted(set(Watch.seen)))
"""
LLAMA_INDEX = """
from llama_index.core.llms import ChatMessage
from llama_index.llms.memlong import MemLongLLM
asyncio.run(MemLongLLM(**OPTIONS).achat([ChatMessage(role="user", content="Hello")]))
print(sorted(set(Watch.seen)))
"""


@pytest.mark.parametrize("adapter", [LANGCHAIN, LLAMA_INDEX], ids=["LangChain", "LlamaIndex"])
def test_torch_is_imported_on_a_worker(adapter: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCH + adapter],
        env={**os.environ, "PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == ["['memlong-stream']"], done.stderr
