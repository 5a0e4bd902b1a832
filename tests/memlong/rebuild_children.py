"""Rebuilds that are killed. Run as a script by test_rebuild_killed.py, with tests/storage on the
path; orders and answers are as in upgrade_children.py.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, event
from upgrade_children import Boundaries, serve

from memlong_agent import MemLong


def rebuilt(order: dict[str, Any], mark: Boundaries) -> None:
    if not order.get("batches_only"):
        for name in ("rename", "unlink"):
            mark.around(name)
        event.listen(Engine, "commit", lambda _: mark("before commit"))
    MemLong.rebuild(
        order["model"],
        order["bank"],
        database=order.get("database"),
        vectors=order["vectors"],
        embedder=order["embedder"],
        on_progress=lambda done, total: mark("after a batch"),
    )


if __name__ == "__main__":
    serve(rebuilt)
