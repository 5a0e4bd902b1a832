"""Items: JSON values under namespaces and keys, some of them remembered by a user too.

In: namespaces, keys, values, texts. Out: items. A remembered item is a memory of its user: it is
recalled into the attention, changes with its item and is forgotten with it, and forgetting the
memory deletes the item. Two processes that put one key at once leave the item of one; its memory
may be the other's until the next put.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from memlong_agent.engine import Engine
from memlong_agent.errors import ConfigError, MemoryNotFoundError
from memlong_agent.memlong.memories import Clock, Memories
from memlong_agent.memory import Accept, check_text
from memlong_agent.storage import Binding, Namespace, NewItem, Owner, StoredItem

_SWEPT_AT_ONCE = 100


class Items:
    """The items of one tenant. Made by :meth:`memlong_agent.MemLong.items`; thread-safe."""

    def __init__(self, engine: Engine, tenant: str, clock: Clock) -> None:
        self._engine, self._tenant, self._clock = engine, tenant, clock
        self._bank = engine.bank.items
        self._writing = threading.RLock()  # an item and its memory change together

    def put(
        self,
        namespace: Namespace,
        key: str,
        value: Mapping[str, Any],
        *,
        texts: Sequence[str] = (),
        remember: str = "",
        user_id: str | None = None,
        ttl_s: float | None = None,
    ) -> None:
        """Write an item, or replace its value; deletes up to 100 items whose time is over.

        `texts` find it in :meth:`search`. `remember` is recalled into the attention of `user_id`,
        as something that this user said; blank, or without a user, it is a plain item. After
        `ttl_s` seconds without a write or a refresh the item is gone, and its memory with it.
        Raises ConfigError for a value that is not JSON, blank labels, a `ttl_s` not above 0.
        """
        if ttl_s is not None and not ttl_s > 0:
            raise ConfigError(f"ttl_s={ttl_s}: pass seconds above 0, or None to keep it.")
        with self._writing:
            new = NewItem(namespace, key, value, ttl_s=ttl_s)
            self._bank.rows.check(new)
            check_text(self._engine.settings, json.dumps(dict(value)), remember)
            self.sweep(_SWEPT_AT_ONCE)
            bound = self._remembered(new, remember, user_id)
            try:
                before = self._bank.put(self._tenant, replace(new, bound=bound), texts)
            except MemoryNotFoundError:  # evicted since it was remembered
                before, bound = self._bank.put(self._tenant, new, texts), None
            if before is not None and before != bound:
                self._forget(before)

    def get(self, namespace: Namespace, key: str, *, refresh: bool = False) -> StoredItem | None:
        """One item; with `refresh` its time to live begins anew."""
        return self._bank.rows.get(self._tenant, namespace, key, refresh=refresh)

    def search(
        self,
        prefix: Namespace = (),
        *,
        query: str | None = None,
        accept: Accept | None = None,
        limit: int = 10,
        offset: int = 0,
        refresh: bool = False,
    ) -> list[tuple[StoredItem, float | None]]:
        """Items below a namespace with their cosines to `query`, best first.

        Without a query, the last written first and None for a cosine. `accept` decides by value.
        """
        found = self._bank.search(
            self._tenant, prefix, query=query, accept=accept, limit=limit, offset=offset
        )
        if refresh:
            self._bank.rows.refresh([item.pk for item, _ in found if item.expires_at is not None])
        return found

    def delete(self, namespace: Namespace, key: str, *, purge: bool = True) -> None:
        """Delete an item, if it is there, and forget its memory; `purge` as in :class:`Memories`.

        What an item held before it was put anew, and items whose time was over, leave their last
        bytes to the next purge.
        """
        with self._writing:
            there, bound = self._bank.rows.binding(self._tenant, namespace, key)
            if bound is not None:
                self._forget(bound)  # takes the item along, in one transaction
            before = self._bank.rows.delete(self._tenant, namespace, key)
            if before is not None:  # it was written meanwhile
                self._forget(before)
        if purge and (there or before is not None):
            self._engine.bank.purge()

    def namespaces(self) -> Sequence[Namespace]:
        """All namespaces that hold an item, sorted."""
        return self._bank.rows.namespaces(self._tenant)

    def sweep(self, limit: int = _SWEPT_AT_ONCE) -> int:
        """Delete at most `limit` items whose time is over; returns how many."""
        over = self._bank.rows.end(self._tenant, limit)
        for bound in over:
            if bound is not None:  # its time is over too: after a crash here it goes by itself
                self._forget(bound)
        return len(over)

    def _remembered(self, new: NewItem, text: str, user_id: str | None) -> Binding | None:
        """The item's memory, written or changed; its message_id makes it one per item."""
        if user_id is None or not text.strip():
            return None
        owner = Owner(self._tenant, "user", user_id)
        (memory,) = Memories(self._engine, owner, self._clock).add(
            text,
            metadata={"namespace": list(new.namespace), "key": new.key},
            message_id="item:" + json.dumps([*new.namespace, new.key]),
        )
        return Binding(owner, memory.id)

    def _forget(self, bound: Binding) -> None:
        with suppress(MemoryNotFoundError):  # forgotten or evicted already
            Memories(self._engine, bound.owner, self._clock).delete(bound.memory_id, purge=False)
