"""The root README keeps its word: its code runs from top to bottom, its commands are real."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_a_fact_told_in_the_first_block_is_answered_by_every_block(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    paths = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    plain, langchain, llama_index = done.stdout.splitlines()
    assert "Rex" in plain.split("[")[0] and "Rex" in langchain and "Rex" in llama_index
    assert "'cache_read'" in langchain


def test_the_line_that_runs_the_tests_installs_what_they_need() -> None:
    line = next(line for line in README.splitlines() if "pytest" in line)
    found = re.fullmatch(
        r'pip install -q -c constraints.txt -e "\.\[(.*)\]" && python -m pytest -q', line
    )
    assert found is not None, line
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = found[1].split(",")
    assert set(named) <= set(extras)
    assert {"minilm", "faiss", "langchain", "llama-index", "train", "dev"} <= set(named)
    assert "grep -m1 pytest README.md" in (ROOT / ".ci" / "run").read_text()
