"""Items on their way: all of an owner, and one as it was.

The caller owns the transaction. What an item's row is like is known in storage/items/rows.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import Connection, insert

from memlong_agent.errors import ConfigError
from memlong_agent.storage import seal
from memlong_agent.storage.items.rows import (
    NewItem,
    StoredItem,
    alive,
    first_item,
    item_values,
    place_of,
    query_items,
    sealed_item,
    stored_item,
)
from memlong_agent.storage.models import items

_PAGE = 100


def owned_items(
    conn: Connection, tenant: str, owner_pk: int | None, now: datetime
) -> Iterator[StoredItem]:
    """The living items of one owner, or of a whole tenant, with their vectors, oldest first."""
    query = query_items(vectors=True).where(items.c.tenant == tenant, alive(now))
    if owner_pk is not None:
        query = query.where(items.c.owner_id == owner_pk)
    query, after = query.order_by(items.c.pk).limit(_PAGE), 0
    while rows := conn.execute(query.where(items.c.pk > after)).all():
        yield from (stored_item(seal.of(conn), row) for row in rows)
        after = rows[-1].pk


def put_back(
    conn: Connection, tenant: str, item: StoredItem, owner_pk: int | None, memory_pk: int | None
) -> bool:
    """Write an item as it was, times included; False if it is there already.

    ConfigError if another value is under its key, or it cannot be stored.
    """
    place = place_of(tenant, item.namespace, item.key)
    found = first_item(conn, tenant, item.namespace, item.key)
    if found is not None:
        if found.value != item.value:
            raise ConfigError(
                f"Another item is under {item.key!r} in {list(item.namespace)} already."
            )
        return False
    plain = item_values(NewItem(item.namespace, item.key, item.value, item.vectors, item.ttl_s))
    secret = sealed_item(seal.of(conn), **place, value=plain["value"], vectors=plain["vectors"])
    values = {**plain, **secret}
    times = {name: getattr(item, name) for name in ("created_at", "updated_at", "expires_at")}
    bound = {"owner_id": owner_pk, "memory_pk": memory_pk}
    conn.execute(insert(items).values(**place, **values, **times, **bound))
    return True
