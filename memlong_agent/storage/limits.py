"""How many memories an owner may have. The caller owns the write transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, func, select

from memlong_agent.errors import ConfigError
from memlong_agent.storage.models import memories


@contextmanager
def room(conn: Connection, owner: int, most: int | None) -> Iterator[None]:
    """Refuse writes inside that leave an owner with more than `most` memories.

    What a running turn has pending does not count, nor do writes that add none.
    """
    before = 0 if most is None else count(conn, owner)
    yield
    if most is not None:
        check(conn, owner, most, before)


def check(conn: Connection, owner: int, most: int, before: int) -> None:
    """ConfigError if an owner, who had `before` memories, has more than `most` by writes since."""
    after = count(conn, owner)
    if after > max(most, before):
        raise ConfigError(
            f"This owner would have {after:,} memories, more than max_memories={most:,}. Forget "
            "some, or raise max_memories."
        )


def count(conn: Connection, owner: int) -> int:
    """Memories of an owner, without those that a running turn has pending."""
    mine = (memories.c.owner_id == owner) & memories.c.pending.is_(None)
    return conn.scalar(select(func.count()).where(mine)) or 0
