"""A process that has its vector index in RAM sees before each answer what others did meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from memory_drafts import ALICE, BOB, Compass, draft, open_bank, texts

from memlong_agent.storage import Owner

HERE = Path(__file__).parent
CHILD = """
import json, sys
from memory_drafts import ALICE, BOB, Compass, draft, open_bank, texts

with open_bank(sys.argv[1], embedder=Compass(), database=sys.argv[2] or None) as bank:
    for line in sys.stdin:
        owner, add, forget = json.loads(line)
        owner = {"alice": ALICE, "bob": BOB}[owner]
        for text in add:
            bank.add(owner, [draft(text + " @5")])
        for memory in bank.list(owner):
            if memory.text.split(" @")[0] in forget:
                bank.delete(owner, [memory.id])
        found = texts(bank.recall(owner, "what", top_k=50))
        print(json.dumps(sorted(each.split(" @")[0] for each in found)), flush=True)
"""


@contextmanager
def other_process(folder: Path, database: str | None) -> Iterator[Callable[..., list[str]]]:
    """A process with the bank open; the call tells it what to do and gives what it recalls."""
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), database or ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        text=True,
    ) as child:
        stdin, stdout = child.stdin, child.stdout
        assert stdin is not None and stdout is not None

        def told(owner: str, add: Any = (), forget: Any = ()) -> list[str]:
            print(json.dumps([owner, add, forget]), file=stdin, flush=True)
            answer: list[str] = json.loads(stdout.readline())
            return answer

        yield told
        stdin.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_index_caches_catch_up_before_each_recall(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    database = request.getfixturevalue("postgres").url() if kind == "postgres" else None
    with (
        open_bank(tmp_path / "bank", embedder=Compass(), database=database) as bank,
        other_process(tmp_path / "bank", database) as other,
    ):

        def recalled(owner: Owner = ALICE) -> list[str]:
            found = texts(bank.recall(owner, "what", top_k=50))
            return sorted(each.split(" @")[0] for each in found)

        (first,) = bank.add(ALICE, [draft("one @5")]).memories
        assert recalled() == other("alice") == ["one"]
        bank.add(ALICE, [draft("two @5"), draft("three @5")])
        assert other("alice") == recalled() == ["one", "three", "two"]
        bank.delete(ALICE, [first.id])
        assert other("alice", ["four"]) == recalled() == ["four", "three", "two"]
        other("alice", [], ["two", "four"])
        assert recalled() == ["three"]
        other("bob", ["bob's"])
        assert recalled() == ["three"] and recalled(BOB) == ["bob's"]
        for turn in range(10):  # each writes and recalls in turn: nothing is late, nothing is lost
            bank.add(ALICE, [draft(f"mine {turn} @5")])
            assert f"mine {turn}" in other("alice", [f"theirs {turn}"])
            assert f"theirs {turn}" in recalled()
        assert len(recalled()) == 21
