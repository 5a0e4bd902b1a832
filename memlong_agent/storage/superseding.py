"""Which memory is recalled in place of another.

In: keys of memories inside a transaction. While the newer one is there, the older is kept and
listed but never recalled. When the newer one is deleted by its id, the older is recalled again;
when it goes otherwise (forgotten by text, expired, evicted), the older stays hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select, update

from memlong_agent.errors import ConfigError
from memlong_agent.storage.batching import batches
from memlong_agent.storage.models import memories


def hide(conn: Connection, old: int, new: int) -> None:
    """Let `new` supersede `old`. ConfigError if another does already, or they are the same."""
    free = (memories.c.pk == old) & memories.c.superseded_by.is_(None)
    change = update(memories).where(free).values(superseded_by=new)
    if old == new or not conn.execute(change).rowcount:
        raise ConfigError(
            "This memory is superseded already, or by itself. Supersede the one that replaced it, "
            "or update it."
        )


def release(conn: Connection, pks: Sequence[int], *, undo: bool) -> None:
    """Memories of `pks` are about to go: what they superseded passes to what superseded them.

    What is superseded by none then is recalled again with `undo`, else hidden for good.
    """
    newer: dict[int, int | None] = {}
    pairs = select(memories.c.pk, memories.c.superseded_by)
    for batch in batches(pks):
        newer |= {pk: by for pk, by in conn.execute(pairs.where(memories.c.pk.in_(batch)))}
    for batch in batches(pks):
        for old, by in conn.execute(pairs.where(memories.c.superseded_by.in_(batch))).all():
            if old in newer:
                continue
            while by in newer:
                by = newer[by]
            values: dict[str, Any] = {"superseded_by": by}
            if by is None and not undo:
                values["recallable"] = False
            conn.execute(update(memories).where(memories.c.pk == old).values(values))
