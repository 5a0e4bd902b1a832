"""The items of a bank: put, get, list, refresh, delete, each in one transaction."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy import delete, select, update

from memlong_agent.storage import seal, writes
from memlong_agent.storage.batching import batches
from memlong_agent.storage.database import Database
from memlong_agent.storage.dialects import upsert
from memlong_agent.storage.items.rows import (
    Binding,
    Namespace,
    NewItem,
    StoredItem,
    alive,
    below,
    bind,
    bound_to,
    delete_items,
    end_of,
    first_item,
    item_values,
    labels_of,
    place_of,
    places,
    query_items,
    sealed_item,
    standing,
    stored_item,
)
from memlong_agent.storage.models import items, memories


class ItemStore:
    """The items of one bank. Every write is one transaction; calls may raise StoreError."""

    def __init__(self, db: Database, clock: Callable[[], datetime]) -> None:
        self._db, self._clock = db, clock

    def check(self, new: NewItem) -> None:
        """ConfigError for a value that is not JSON, for labels that are blank or hold a control
        character, a key that is not text for a database, a `ttl_s` beyond the calendar.
        """
        place_of("", new.namespace, new.key)
        item_values(new)
        end_of(self._clock(), new.ttl_s)

    def put(self, tenant: str, new: NewItem) -> Binding | None:
        """Write an item, or give it a new value; returns what it was bound to before.

        ConfigError as for :meth:`check`, MemoryNotFoundError if it is bound to nothing.
        """
        now, place = self._clock(), place_of(tenant, new.namespace, new.key)
        plain = {**item_values(new), "updated_at": now, "expires_at": end_of(now, new.ttl_s)}
        with self._db.scope(write=True) as conn:
            values = {
                **plain,
                **sealed_item(
                    seal.of(conn), **place, value=plain["value"], vectors=plain["vectors"]
                ),
            }
            old = standing(conn, place)
            gone = old is None or (old.expires_at is not None and old.expires_at <= now)
            values |= {"created_at": now} if gone else {}
            values |= bind(conn, new.bound, values["expires_at"])
            conn.execute(upsert(conn, items, {**place, "created_at": now, **values}, values))
            return None if old is None else bound_to(old)

    def get(
        self, tenant: str, namespace: Namespace, key: str, *, refresh: bool = False
    ) -> StoredItem | None:
        """One item; with `refresh` its time to live begins anew."""
        with self._db.scope() as conn:
            found = first_item(conn, tenant, namespace, key, self._clock())
        if found is not None and refresh and found.expires_at is not None:
            self.refresh([found.pk])
        return found

    def list(
        self,
        tenant: str,
        prefix: Namespace = (),
        *,
        limit: int | None,
        offset: int = 0,
        vectors: bool = False,
    ) -> Sequence[StoredItem]:
        """Items whose namespace begins with `prefix`, the last written first."""
        query = query_items(vectors).where(items.c.tenant == tenant, below(prefix))
        query = query.where(alive(self._clock()))
        query = query.order_by(items.c.updated_at.desc(), items.c.pk.desc())
        with self._db.scope() as conn:
            rows = conn.execute(query.limit(limit).offset(offset))
            return [stored_item(seal.of(conn), row) for row in rows]

    def refresh(self, pks: Sequence[int]) -> None:
        """Begin the time to live of items anew, and of the memories they are bound to."""
        now = self._clock()
        with self._db.scope(write=True) as conn:
            for batch in batches(pks):
                ending = select(items.c.pk, items.c.ttl_s, items.c.memory_pk)
                ending = ending.where(items.c.pk.in_(batch), items.c.ttl_s.is_not(None))
                for pk, ttl_s, memory_pk in conn.execute(ending.where(alive(now))).all():
                    end = {"expires_at": end_of(now, ttl_s)}
                    conn.execute(update(items).where(items.c.pk == pk).values(end))
                    conn.execute(update(memories).where(memories.c.pk == memory_pk).values(end))

    def delete(self, tenant: str, namespace: Namespace, key: str) -> Binding | None:
        """Delete an item, if it is there; returns what it was bound to."""
        with self._db.scope(write=True) as conn:
            old = standing(conn, place_of(tenant, namespace, key))
            if old is None:
                return None
            delete_items(conn, [old.pk])
            writes.note_unpurged(conn)
            return bound_to(old)

    def binding(self, tenant: str, namespace: Namespace, key: str) -> tuple[bool, Binding | None]:
        """Whether there is an item, also one whose time is over, and what it is bound to."""
        with self._db.scope() as conn:
            found = standing(conn, place_of(tenant, namespace, key))
            return found is not None, None if found is None else bound_to(found)

    def end(self, tenant: str, limit: int) -> builtins.list[Binding | None]:
        """Delete at most `limit` items whose time is over; returns what each was bound to."""
        over = (items.c.tenant == tenant) & (items.c.expires_at <= self._clock())
        query = places().where(over).order_by(items.c.expires_at).limit(limit)
        with self._db.scope() as conn:
            if conn.execute(query.limit(1)).first() is None:
                return []
        with self._db.scope(write=True) as conn:
            found = conn.execute(query).all()
            delete_items(conn, [row.pk for row in found])
        return [bound_to(row) for row in found]

    def expire(self) -> None:
        """Delete all items whose time is over; the memories they are bound to end by themselves."""
        over = (items.c.expires_at <= self._clock()) & items.c.expires_at.is_not(None)
        with self._db.scope() as conn:
            if conn.scalar(select(items.c.pk).where(over).limit(1)) is None:
                return
        with self._db.scope(write=True) as conn:
            conn.execute(delete(items).where(over))

    def namespaces(self, tenant: str) -> Sequence[Namespace]:
        """All namespaces that hold an item, sorted."""
        query = select(items.c.namespace).where(items.c.tenant == tenant, alive(self._clock()))
        with self._db.scope() as conn:
            return sorted(labels_of(text) for text in conn.scalars(query.distinct()))
