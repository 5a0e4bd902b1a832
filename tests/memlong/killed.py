"""Processes that are killed on the way, and what the bank that they leave holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memlong_agent import MemLong
from memlong_agent.storage import Owner

HERE = Path(__file__).parent
ALICE = Owner("default", "user", "alice")
Killed = Callable[[dict[str, Any]], list[str]]
"""Order to a child in; the boundaries that it reached out."""


@contextmanager
def orders_to(script: str) -> Iterator[Killed]:
    """Orders to a script of this folder that answers as tests/storage/upgrade_children.py does."""
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent / "storage")])
    with subprocess.Popen(
        [sys.executable, str(HERE / script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        text=True,
    ) as helper:
        assert helper.stdin is not None and helper.stdout is not None

        def order(wanted: dict[str, Any]) -> list[str]:
            assert helper.stdin is not None and helper.stdout is not None
            helper.stdin.write(json.dumps(wanted) + "\n")
            helper.stdin.flush()
            names: list[str] = json.loads(helper.stdout.readline())
            return names

        yield order
        helper.stdin.close()


def contents(ml: MemLong, owner: Owner = ALICE) -> dict[str, Any]:
    """All that an owner has in a bank, which is whole."""
    storage = ml.engine.bank._storage
    assert storage.verify() == []
    memories = storage.list_memories(owner, newest_first=False)
    pks = [pk for memory in memories for pk in memory.chunk_pks]
    kv = storage.read_kv(pks)
    return {
        "memories": [(m.id, m.text, m.created_at, m.chunks) for m in memories],
        "chunks": [(c.memory_id, c.ordinal, c.text) for c in storage.chunks(owner, pks)],
        "kv": [(each.keys.numpy().tobytes(), each.values.numpy().tobytes()) for each in kv],
        "vectors": storage.vectors_of(owner, pks)[1].tobytes(),
        "items": [(i.value, score) for i, score in ml.items().search(query="tea")],
    }
