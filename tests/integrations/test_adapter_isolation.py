"""Two tenants with users of the same names, through every door of both adapters and of MemLong.

Eight workers in two processes on one bank and a tiny random model; MEMLONG_TESTS=full does 10,000
operations. The bank alone, with its tensors, is tested in tests/memory/test_isolation.py.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from strangers import FULL, PROCESSES, WORKERS, reports_of

pytest.importorskip("langchain", reason="needs the extra [langchain]")
pytest.importorskip("llama_index.core", reason="needs the extra [llama-index]")

from memlong_agent import MemLong
from memlong_agent.layout import MemoryLayout
from memlong_agent.testing import tiny_checkpoint

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OPERATIONS = 10_000 if FULL else 160


@pytest.mark.timeout(7200)
def test_no_owner_is_given_a_strangers_memory(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", layout=MemoryLayout.memlong(4))
    script, bank = HERE / "adapter_stranger.py", tmp_path / "bank"
    paths = [ROOT, ROOT / "integrations", ROOT / "tests" / "memory"]
    reports = reports_of(script, [model, bank], OPERATIONS, paths)
    done = sum((Counter(report["done"]) for report in reports), Counter[str]())
    assert done.total() > OPERATIONS / 2 and done["do_export"] >= PROCESSES * WORKERS / 2
    assert len(done) == 19, "some door was never gone through"
    assert sum(report["looked_at"] for report in reports) > OPERATIONS
    # In few operations it is a matter of chance how much the turns push out.
    assert not FULL or sum(report["evicted"] for report in reports) > OPERATIONS / 100
    with MemLong(model, bank, embedder="hash") as ml:
        assert ml.engine.bank.verify() == []
        assert {owner.tenant for owner in ml.stats()} == {"acme", "globex"}
