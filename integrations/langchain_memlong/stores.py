"""`MemLongStore`: LangGraph's long-term store in the same bank as the memory.

In: LangGraph's operations. Out: LangGraph's items. Items survive restarts, are found by meaning,
and where the namespace names a user they are recalled into that user's attention as well. Filters
and namespace patterns are decided here, rows and vectors by memlong-agent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
    get_text_at_path,
    validate_op_namespace,
)

from langchain_memlong._filters import matches
from langchain_memlong._pool import in_pool
from langchain_memlong._settings import MemLongPlace
from memlong_agent.errors import ConfigError

if TYPE_CHECKING:
    from memlong_agent.memlong import Items

USER = "{user_id}"
_SAYING = ("text", "content", "memory", "fact")
_DEEPEST = 32


class MemLongStore(BaseStore):
    """A LangGraph store: `put`, `get`, `search`, `delete`, `list_namespaces`, and async twins.

    Args:
        model, bank, options: As for `ChatMemLong`; the same values share one engine and one bank.
        owner_template: Namespaces that begin like this belong to the user who stands for
            `{user_id}`; their items are recalled into that user's attention, as the user's own
            words. `"*"` is any label. None recalls no item.
        fields: Paths of the texts that `search(query=...)` looks at, `"$"` is the whole value.
            `put(..., index=[...])` names others, and `index=False` makes an item that no query
            finds and nobody recalls.
        ttl: LangGraph's `TTLConfig`; expired items are never given out, and each `put` deletes up
            to 100 of them.

    In a `batch` reads see what was there before it, and of several puts of one key the last counts.
    Raises ConfigError for a value that is not JSON.
    """

    supports_ttl = True

    def __init__(
        self,
        bank: str | Path | None = None,
        *,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        owner_template: Sequence[str] | None = ("memories", USER),
        fields: Sequence[str] = ("$",),
        ttl: TTLConfig | None = None,
    ) -> None:
        named = {"bank": bank, "model": model}
        given = {name: value for name, value in named.items() if value is not None}
        self._place = MemLongPlace(**given, options=dict(options or {}))
        if owner_template is not None and list(owner_template).count(USER) != 1:
            raise ConfigError(
                f"owner_template={tuple(owner_template)!r}: exactly one label must be {USER!r}, or "
                "pass None to recall no item."
            )
        self._template = None if owner_template is None else tuple(owner_template)
        self._fields = list(fields)
        self.ttl_config = ttl

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        results: list[Result] = []
        puts: dict[tuple[tuple[str, ...], str], PutOp] = {}
        for op in ops:
            validate_op_namespace(op)
            results.append(None)
            if isinstance(op, PutOp):
                puts[op.namespace, op.key] = op
            else:
                results[-1] = self._read(op)
        for put in puts.values():
            self._write(put)
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        return await in_pool(self.batch, list(ops))

    def sweep_ttl(self) -> int:
        """Delete every item whose time is over, and its memory; returns how many."""
        swept, items = 0, self._items()
        while found := items.sweep():
            swept += found
        return swept

    def _items(self) -> Items:
        return self._place.memlong().items()

    def _read(self, op: GetOp | SearchOp | ListNamespacesOp) -> Result:
        if isinstance(op, GetOp):
            found = self._items().get(op.namespace, op.key, refresh=op.refresh_ttl)
            return None if found is None else Item(**_fields(found))
        if isinstance(op, SearchOp):
            return self._search(op)
        return self._namespaces(op)

    def _search(self, op: SearchOp) -> list[SearchItem]:
        wanted = op.filter
        found = self._items().search(
            op.namespace_prefix,
            query=op.query,
            accept=(lambda value: matches(value, wanted)) if wanted else None,
            limit=op.limit,
            offset=op.offset,
            refresh=op.refresh_ttl,
        )
        return [SearchItem(**_fields(item), score=score) for item, score in found]

    def _namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        kept = [
            namespace
            for namespace in self._items().namespaces()
            if all(_fits(condition, namespace) for condition in op.match_conditions or ())
        ]
        if op.max_depth is not None:
            kept = sorted({namespace[: op.max_depth] for namespace in kept})
        return kept[op.offset : op.offset + op.limit]

    def _write(self, op: PutOp) -> None:
        if op.value is None:
            self._items().delete(op.namespace, op.key)
            return
        value = dict(op.value)
        paths = self._fields if op.index is None else op.index or []
        texts = _texts(value, paths)
        said = texts if op.index else [saying(value)]
        self._items().put(
            op.namespace,
            op.key,
            value,
            texts=texts,
            remember="\n".join(said) if paths else "",
            user_id=self._user(op.namespace),
            ttl_s=None if op.ttl is None else op.ttl * 60,
        )

    def _user(self, namespace: tuple[str, ...]) -> str | None:
        """Whose items they are, if the namespace begins as the template says."""
        template = self._template
        if template is None or len(namespace) < len(template):
            return None
        pairs = list(zip(template, namespace, strict=False))
        if all(wanted in (label, USER, "*") for wanted, label in pairs):
            return dict(pairs)[USER]
        return None


def saying(value: Mapping[str, Any], depth: int = 0) -> str:
    """A value in words: its text, content, memory or fact, else `name: value` of all it holds."""
    for name in _SAYING:
        said = value.get(name)
        if isinstance(said, str) and said.strip():
            return said
        if isinstance(said, Mapping) and depth < _DEEPEST:
            return saying(said, depth + 1)
    return ". ".join(f"{name}: {each}" for name, each in value.items() if each not in (None, ""))


def _texts(value: dict[str, Any], paths: Sequence[str]) -> list[str]:
    try:
        return [text for path in paths for text in get_text_at_path(value, path)]
    except (TypeError, ValueError):  # not JSON: writing it says so
        return []


def _fields(stored: Any) -> dict[str, Any]:
    names = ("namespace", "key", "value", "created_at", "updated_at")
    return {name: getattr(stored, name) for name in names}


def _fits(condition: MatchCondition, namespace: tuple[str, ...]) -> bool:
    """Whether a namespace begins or ends like the condition's path; `*` is any label."""
    path = condition.path
    spare = len(namespace) - len(path)
    if spare < 0:
        return False
    near = namespace[: len(path)] if condition.match_type == "prefix" else namespace[spare:]
    return all(wanted in ("*", label) for wanted, label in zip(path, near, strict=True))
