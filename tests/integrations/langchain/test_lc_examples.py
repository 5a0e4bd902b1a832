"""The README's code and the examples, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
README = ROOT / "integrations" / "langchain_memlong" / "README.md"
EXAMPLES = ("langchain_chat.py", "langgraph_agent.py")
MOST_LINES = 70


def run(*command: str, cwd: Path) -> str:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_code_runs_from_top_to_bottom(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "readme.py").write_text("\n".join(blocks))
    assert "tokens came from the bank" in run("readme.py", cwd=tmp_path)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short(name: str) -> None:
    assert len((ROOT / "examples" / name).read_text().splitlines()) <= MOST_LINES


def test_the_chat_recalls_across_conversations_and_users_are_apart(tmp_path: Path) -> None:
    said = run(str(ROOT / "examples" / "langchain_chat.py"), cwd=tmp_path)
    friday, bob = said.split("alice, friday>", 1)[1].split("bob, friday")
    assert "Rex" in friday and "teal" in friday
    assert "Rex" not in bob.split("Where the last answer")[0]
    assert re.search(r"monday  My dog is called Rex", bob)


def test_the_agent_calls_its_tool_and_recalls_thread_and_store(tmp_path: Path) -> None:
    said = run(str(ROOT / "examples" / "langgraph_agent.py"), cwd=tmp_path)
    turns = said.split("human: ")[1:]
    assert len(turns) == 4
    assert re.search(r"ai: \{'zone': '(UTC|CET)'\}\n.*tool: It is noon in \1", turns[1])
    answers = [turn.rpartition("ai: ")[2] for turn in turns]
    assert "Rex" in answers[2] and "Tom" in answers[3]
