"""Items as rows: their records, their columns, what of them is sealed. The caller owns the
transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    Select,
    delete,
    func,
    or_,
    select,
    update,
)

from memlong_agent.errors import ConfigError
from memlong_agent.storage import reads, seal
from memlong_agent.storage.base import Matrix, Owner
from memlong_agent.storage.batching import batches
from memlong_agent.storage.matching import strings
from memlong_agent.storage.models import items, memories, owners

Namespace = tuple[str, ...]
_END = "\x1f"  # unit separator, after every label: a prefix of labels is a prefix of the text
_AFTER_END = "\x20"


@dataclass(frozen=True, slots=True)
class Binding:
    """The memory that holds an item's text for recall."""

    owner: Owner
    memory_id: str


@dataclass(frozen=True, slots=True, eq=False)
class NewItem:
    """One item to be written."""

    namespace: Namespace
    key: str
    value: Mapping[str, Any]
    """JSON with text keys."""
    vectors: Matrix | None = None  # (n, E)
    """Unit vectors of the item's texts."""
    ttl_s: float | None = None
    """Seconds from the last write or refresh to its end; None is for ever."""
    bound: Binding | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StoredItem:
    """One item as it stands in the bank."""

    pk: int
    namespace: Namespace
    key: str
    value: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    bound: Binding | None
    ttl_s: float | None = None
    owner: Owner | None = None
    """Whose it is; an owner keeps an item whose memory was evicted."""
    vectors: Matrix | None = None  # (n * E,)
    """Its vectors one after another, if they were asked for."""


def delete_bound(conn: Connection, memory_pks: Sequence[int]) -> None:
    """Delete the items that are bound to memories; these are about to be forgotten."""
    for batch in batches(memory_pks):
        conn.execute(delete(items).where(items.c.memory_pk.in_(batch)))


def owned_items(conn: Connection, owner_pk: int) -> list[tuple[int, int | None, list[str]]]:
    """Key, memory and all texts of the items of an owner."""
    rows = conn.execute(query_items().where(items.c.owner_id == owner_pk)).all()
    found = []
    for row in rows:
        item = stored_item(seal.of(conn), row)
        texts = [*item.namespace, item.key, *strings(item.value)]
        found.append((item.pk, row.memory_pk, texts))
    return found


def delete_items(conn: Connection, pks: Sequence[int]) -> None:
    for batch in batches(pks):
        conn.execute(delete(items).where(items.c.pk.in_(batch)))


def delete_owned(conn: Connection, owner_pk: int) -> None:
    """Delete the items of an owner, all of whose memories are about to be forgotten."""
    conn.execute(delete(items).where(items.c.owner_id == owner_pk))


def _text(namespace: Namespace) -> str:
    wrong = [each for each in namespace if each.isspace() or min(each, default="") < " "]
    wrong += [label for label in namespace if not _stores(label)]
    if wrong:
        raise ConfigError(
            f"{wrong[0]!r} cannot be a label of a namespace. Use labels that are not blank and "
            "hold no control character and no half of a surrogate pair."
        )
    return "".join(label + _END for label in namespace)


def _stores(text: str) -> bool:
    """Whether every database gives back what it was given."""
    return "\0" not in text and text.encode(errors="ignore").decode() == text


def labels_of(text: str) -> Namespace:
    return tuple(text.split(_END)[:-1])


def place_of(tenant: str, namespace: Namespace, key: str) -> dict[str, str]:
    if not _stores(key):
        raise ConfigError(
            f"{key!r} cannot be a key. Use text without NUL and without half of a surrogate pair."
        )
    return {"tenant": tenant, "namespace": _text(namespace), "key": key}


def item_values(new: NewItem) -> dict[str, Any]:
    try:
        value = json.loads(json.dumps(dict(new.value), allow_nan=False))
    except (TypeError, ValueError) as exc:
        raise ConfigError(
            f"The value of item {new.key!r} is not JSON: {exc}. Pass a dictionary of texts, "
            "numbers, booleans, lists and dictionaries."
        ) from exc
    vectors = None if new.vectors is None else np.asarray(new.vectors, "<f4").tobytes()
    return {"value": value, "ttl_s": new.ttl_s, "vectors": vectors}


def end_of(now: datetime, ttl_s: float | None) -> datetime | None:
    try:
        return None if ttl_s is None else now + timedelta(seconds=ttl_s)
    except (OverflowError, ValueError):
        raise ConfigError(f"ttl_s={ttl_s} is beyond the calendar. Pass None to keep it.") from None


def bind(conn: Connection, bound: Binding | None, end: datetime | None) -> dict[str, Any]:
    """Columns of a binding; the memory ends when its item does."""
    if bound is None:
        return {"owner_id": None, "memory_pk": None}
    owner_pk = reads.owner_row(conn, bound.owner)[0]
    memory_pk = reads.memory_pk(conn, owner_pk, bound.memory_id)
    conn.execute(update(memories).where(memories.c.pk == memory_pk).values(expires_at=end))
    return {"owner_id": owner_pk, "memory_pk": memory_pk}


def query_items(vectors: bool = False) -> Select[Any]:
    kept = [each for each in items.c if vectors or each.name != "vectors"]
    return places(*kept)


def places(*columns: Column[Any]) -> Select[Any]:
    """Items with what they are bound to; without `columns` nothing that is sealed."""
    chosen = columns or (items.c.pk, items.c.expires_at)
    owner = (owners.c.tenant.label("owner_tenant"), owners.c.kind, owners.c.name)
    joined = items.outerjoin(memories, memories.c.pk == items.c.memory_pk)
    joined = joined.outerjoin(owners, owners.c.pk == items.c.owner_id)
    return select(*chosen, *owner, memories.c.id.label("memory_id")).select_from(joined)


def standing(conn: Connection, place: Mapping[str, str]) -> Row[Any] | None:
    """Key, end and binding of the item at a place: also of one that is damaged."""
    here = [items.c[name] == value for name, value in place.items()]
    return conn.execute(places().where(*here)).first()


def _owner(row: Row[Any]) -> Owner | None:
    return None if row.kind is None else Owner(row.owner_tenant, row.kind, row.name)


def bound_to(row: Row[Any]) -> Binding | None:
    owner = _owner(row)
    return None if row.memory_id is None or owner is None else Binding(owner, row.memory_id)


def stored_items(conn: Connection, pks: Sequence[int]) -> Sequence[StoredItem]:
    """Items with their vectors, in no order."""
    rows = conn.execute(query_items(vectors=True).where(items.c.pk.in_(pks)))
    return [stored_item(seal.of(conn), row) for row in rows]


def first_item(
    conn: Connection, tenant: str, namespace: Namespace, key: str, now: datetime | None = None
) -> StoredItem | None:
    """The item at a place; with `now` only if it is alive."""
    place = [items.c[name] == value for name, value in place_of(tenant, namespace, key).items()]
    query = query_items().where(*place)
    row = conn.execute(query if now is None else query.where(alive(now))).first()
    return None if row is None else stored_item(seal.of(conn), row)


def alive(now: datetime) -> ColumnElement[bool]:
    return or_(items.c.expires_at.is_(None), items.c.expires_at > now)


def below(prefix: Namespace) -> ColumnElement[bool]:
    """Condition on the namespace, as a range that the unique index serves."""
    text = _text(prefix)
    if not text:
        return func.length(items.c.namespace) >= 0
    after = text[: -len(_END)] + _AFTER_END
    return (items.c.namespace >= text) & (items.c.namespace < after)


def row_name(tenant: str, namespace: str, key: str) -> str:
    """What identifies an item for ever."""
    return json.dumps([tenant, namespace, key])


def sealed_item(
    cipher: seal.Cipher, tenant: str, namespace: str, key: str, value: Any, vectors: bytes | None
) -> dict[str, Any]:
    """The column values of an item that are sealed."""
    row = row_name(tenant, namespace, key)
    blob = None if vectors is None else cipher.seal(vectors, "items.vectors", row)
    return {"value": cipher.seal_json(value, "items.value", row), "vectors": blob}


def stored_item(cipher: seal.Cipher, row: Row[Any]) -> StoredItem:
    place, blob = row_name(row.tenant, row.namespace, row.key), getattr(row, "vectors", None)
    blob = None if blob is None else cipher.open(blob, "items.vectors", place)
    return StoredItem(
        pk=row.pk,
        namespace=labels_of(row.namespace),
        key=row.key,
        value=cipher.open_json(row.value, "items.value", place),
        created_at=row.created_at,
        updated_at=row.updated_at,
        expires_at=row.expires_at,
        bound=bound_to(row),
        ttl_s=row.ttl_s,
        owner=_owner(row),
        vectors=None if blob is None else np.frombuffer(blob, "<f4"),
    )
