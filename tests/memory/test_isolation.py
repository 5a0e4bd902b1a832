"""Two tenants with owners of the same names, eight workers in two processes, random operations.

No worker may ever be given another owner's text: by recall, search, lists, the session's tail,
items, an id or an exported archive, while the others write, evict and forget. MEMLONG_TESTS=full
does 10,000 operations.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from memory_drafts import Scattered, open_bank
from strangers import FULL, PROCESSES, WORKERS, reports_of

HERE = Path(__file__).parent
OPERATIONS = 10_000 if FULL else 640


@pytest.mark.timeout(3600)
def test_no_owner_is_given_a_strangers_memory(tmp_path: Path) -> None:
    arguments, paths = [tmp_path / "bank"], [HERE.parent.parent, HERE]
    reports = reports_of(HERE / "stranger.py", arguments, OPERATIONS, paths)
    done = sum((Counter(report["done"]) for report in reports), Counter[str]())
    assert done.total() - done["evicted"] > OPERATIONS / 2
    assert done["evicted"] > 0 and done["do_export"] >= PROCESSES * WORKERS / 2
    assert sum(report["looked_at"] for report in reports) > OPERATIONS
    with open_bank(tmp_path / "bank", embedder=Scattered()) as bank:
        assert bank.verify() == []
        assert len(bank.stats()) == 8 + PROCESSES * WORKERS  # and a keeper of each worker
