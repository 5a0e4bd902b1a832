"""Two tenants with owners of the same names, eight workers in two processes, random operations.

No worker may ever be given another owner's text: by recall, search, lists, the session's tail,
items, an id or an exported archive, while the others write, evict and forget. MEMLONG_TESTS=full
does 10,000 operations.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from memory_drafts import Scattered, open_bank

HERE = Path(__file__).parent
OPERATIONS = 10_000 if os.environ.get("MEMLONG_TESTS") == "full" else 640
PROCESSES, WORKERS = 2, 4


@pytest.mark.timeout(3600)
def test_no_owner_is_given_a_strangers_memory(tmp_path: Path) -> None:
    paths = os.pathsep.join(map(str, (HERE.parent.parent, HERE)))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    each = str(-(-OPERATIONS // (PROCESSES * WORKERS)))
    children = [
        subprocess.Popen(
            [sys.executable, str(HERE / "stranger.py"), str(tmp_path / "bank"), str(number), each],
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
    assert done.total() - done["evicted"] > OPERATIONS / 2
    assert done["evicted"] > 0 and done["do_export"] >= PROCESSES * WORKERS / 2
    assert sum(report["looked_at"] for report in reports) > OPERATIONS
    with open_bank(tmp_path / "bank", embedder=Scattered()) as bank:
        assert bank.verify() == []
        assert len(bank.stats()) == 8 + PROCESSES * WORKERS  # and a keeper of each worker
