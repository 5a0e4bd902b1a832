"""Two tenants with users of the same names, through every door of both adapters and of MemLong.

Eight workers in two processes on one bank and a tiny random model; MEMLONG_TESTS=full does 10,000
operations. The bank alone, with its tensors, is tested in tests/memory/test_isolation.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("langchain", reason="needs the extra [langchain]")
pytest.importorskip("llama_index.core", reason="needs the extra [llama-index]")

from memlong_agent import MemLong
from memlong_agent.layout import MemoryLayout
from memlong_agent.testing import tiny_checkpoint

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FULL = os.environ.get("MEMLONG_TESTS") == "full"
OPERATIONS = 10_000 if FULL else 160
PROCESSES, WORKERS = 2, 4


@pytest.mark.timeout(7200)
def test_no_owner_is_given_a_strangers_memory(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", layout=MemoryLayout.memlong(4))
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "integrations", ROOT / "tests" / "memory")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    script, bank = str(HERE / "adapter_stranger.py"), str(tmp_path / "bank")
    each = str(-(-OPERATIONS // (PROCESSES * WORKERS)))
    children = [
        subprocess.Popen(
            [sys.executable, script, str(model), bank, str(number), each],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for number in range(PROCESSES)
    ]
    said = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0] * PROCESSES
    reports = [json.loads(text) for text in said]
    sys.stdout.write(f"{reports}\n")
    done = sum((Counter(report["done"]) for report in reports), Counter[str]())
    assert done.total() > OPERATIONS / 2 and done["do_export"] >= PROCESSES * WORKERS / 2
    assert len(done) == 19, "some door was never gone through"
    assert sum(report["looked_at"] for report in reports) > OPERATIONS
    # In few operations it is a matter of chance how much the turns push out.
    assert not FULL or sum(report["evicted"] for report in reports) > OPERATIONS / 100
    with MemLong(model, bank, embedder="hash") as ml:
        assert ml.engine.bank.verify() == []
        assert {owner.tenant for owner in ml.stats()} == {"acme", "globex"}
