"""The store as LangGraph's own tests see stores, and what is ours: recall, restarts, tenants."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.tools import ToolRuntime, tool
from langchain_memlong import ChatMemLong, MemLongStore
from langchain_memlong.stores import saying
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore
from lc_helpers import ANSWER, ASKED, PLACE, TOLD, of, recalls

from memlong_agent import ConfigError
from memlong_agent.testing import preferring

_numbers = itertools.count()


@pytest.fixture
def root() -> str:
    """A first label that no other test uses; all share one bank."""
    return f"root{next(_numbers)}"


@pytest.fixture
def store() -> Iterator[MemLongStore]:
    """A store over the engine of all these tests, whose bank is sound afterwards."""
    store = MemLongStore(**PLACE)
    yield store
    assert store._place.memlong().engine.bank.verify() == []


def keys(items: Any) -> list[str]:
    return [item.key for item in items]


def test_put_get_update_delete(store: MemLongStore, root: str) -> None:
    place = (root, "docs")
    store.put(place, "a", {"title": "one", "n": [1, {"deep": None}]})
    first = store.get(place, "a")
    assert first is not None and first.value == {"title": "one", "n": [1, {"deep": None}]}
    assert (first.key, first.namespace, first.created_at) == ("a", place, first.updated_at)
    store.put(place, "a", {"title": "two"})
    second = store.get(place, "a")
    assert second is not None and second.value == {"title": "two"}
    assert second.created_at == first.created_at and second.updated_at > first.updated_at
    assert store.get((root,), "a") is None and store.get(place, "b") is None
    store.delete(place, "a")
    store.delete(place, "a")
    assert store.get(place, "a") is None and store.search((root,)) == []


def test_a_batch_gives_results_in_its_order_and_reads_what_was_there_before(
    store: MemLongStore, root: str
) -> None:
    store.put((root, "a"), "k", {"data": 1})
    ops = [
        GetOp((root, "a"), "k"),
        PutOp((root, "b"), "k", {"data": 2}),
        SearchOp((root,), filter={"data": 1}),
        ListNamespacesOp((MatchCondition("prefix", (root,)),)),
        GetOp((root, "b"), "k"),
        PutOp((root, "b"), "k", {"data": 3}),
        PutOp((root, "a"), "k", None),
    ]
    found = store.batch(ops)
    assert isinstance(found[0], Item) and found[0].value == {"data": 1}
    assert found[1] is found[4] is found[5] is found[6] is None
    assert keys(found[2]) == ["k"] and found[3] == [(root, "a")]
    assert [item.value for item in store.search((root,))] == [{"data": 3}]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ["c", "b", "a"]),
        ({"kind": "x"}, ["b", "a"]),
        ({"kind": "x", "n": 2}, ["b"]),
        ({"n": {"$gt": 1}}, ["c", "b"]),
        ({"n": {"$gte": 1, "$lt": 3}}, ["b", "a"]),
        ({"n": {"$lte": 1}}, ["a"]),
        ({"kind": {"$eq": "y"}}, ["c"]),
        ({"kind": {"$ne": "y"}}, ["b", "a"]),
        ({"deep": {"tags": ["p", "q"]}}, ["a"]),
        ({"deep": {"tags": ["p"]}}, []),
        ({"deep": {"size": {"$gt": 4}}}, ["b"]),
        ({"kind": {"$gt": 1}}, []),
        ({"absent": 1}, []),
    ],
)
def test_filters(store: MemLongStore, wanted: dict[str, Any], found: list[str]) -> None:
    place = ("filters",)
    store.put(place, "a", {"kind": "x", "n": 1, "deep": {"tags": ["p", "q"]}})
    store.put(place, "b", {"kind": "x", "n": 2, "deep": {"size": 5}})
    store.put(place, "c", {"kind": "y", "n": 3})
    assert keys(store.search(place, filter=wanted)) == found


def test_pages_and_prefixes(store: MemLongStore, root: str) -> None:
    for number in range(12):
        store.put((root, f"s{number % 2}"), f"k{number:02}", {"odd": number % 2})
    every = keys(store.search((root,), limit=100))
    assert every == [f"k{number:02}" for number in range(11, -1, -1)]
    assert len(store.search((root,))) == 10, "LangGraph's default limit"
    assert keys(store.search((root,), limit=3, offset=2)) == every[2:5]
    odd = keys(store.search((root,), filter={"odd": 1}, limit=2, offset=1))
    assert odd == ["k09", "k07"]
    assert keys(store.search((root, "s0"), limit=2)) == ["k10", "k08"]
    assert store.search((root, "s")) == [], "a label is matched whole"


def test_list_namespaces_by_prefix_suffix_wildcard_depth_and_page(
    store: MemLongStore, root: str
) -> None:
    spaces = [
        (root, "docs", "public", "v1"),
        (root, "docs", "private", "v2"),
        (root, "docs", "private"),
        (root, "cache", "public", "v1"),
    ]
    for space in spaces:
        store.put(space, "k", {})

    def listed(**options: Any) -> list[tuple[str, ...]]:
        return store.list_namespaces(**{"prefix": (root,), **options})

    assert listed() == sorted(spaces)
    assert listed(prefix=(root, "docs")) == sorted(spaces[:3])
    assert listed(prefix=(root, "*", "public")) == sorted([spaces[0], spaces[3]])
    assert listed(suffix=("v1",)) == sorted([spaces[0], spaces[3]])
    assert listed(suffix=("private", "*")) == [spaces[1]]
    assert listed(prefix=(root, "docs", "*", "*", "*")) == []
    assert listed(max_depth=2) == [(root, "cache"), (root, "docs")]
    assert listed(limit=2, offset=1) == sorted(spaces)[1:3]
    store.delete(spaces[1], "k")
    assert spaces[1] not in listed()


def test_a_query_finds_by_meaning_and_index_says_by_what(store: MemLongStore, root: str) -> None:
    place = (root, "notes")
    store.put(place, "dog", {"text": "my dog is called Rex", "by": "ann"})
    store.put(place, "tea", {"text": "green tea without sugar", "by": "bob"})
    store.put(place, "mute", {"text": "the dog, the dog"}, index=False)
    store.put(place, "title", {"title": "dog food", "body": "tea"}, index=["title"])
    found = store.search(place, query="what is the dog called", limit=4)
    assert found[0].key == "dog" and found[-1].key == "mute"
    scores = [item.score for item in found[:-1]]
    assert None not in scores and scores == sorted(scores, reverse=True)
    assert found[-1].score is None
    assert keys(store.search(place, query="dog", filter={"by": "bob"})) == ["tea"]
    assert keys(store.search(place, query="green tea", limit=1)) == ["tea"]
    assert store.search(place, limit=1)[0].score is None


class Tidy(InMemoryStore):
    """LangGraph's store, which in memory, unlike in databases, lists what is empty again."""

    def batch(self, ops: Any) -> list[Any]:
        for namespace in [name for name, items in self._data.items() if not items]:
            del self._data[namespace]
        return super().batch(ops)


def test_random_operations_end_as_in_langgraphs_own_store(store: MemLongStore, root: str) -> None:
    own, draw = Tidy(), random.Random(5)
    labels, filters = ("a", "b", "c"), ({"n": 1}, {"n": {"$gte": 2}}, {"d": {"n": {"$ne": 0}}})

    def drawn(least: int) -> tuple[str, ...]:
        return tuple(draw.choice(labels) for _ in range(draw.randrange(least, 4)))

    def one(kind: str) -> Callable[[Any], Any]:
        place, key = (root, *drawn(1)), draw.choice(labels)
        value, wanted = (
            {"n": draw.randrange(4), "d": {"n": draw.randrange(2)}},
            draw.choice(filters),
        )
        path = tuple(draw.choice((*labels, "*")) for _ in range(draw.randrange(1, 3)))
        depth = draw.choice((None, 2, 3))
        return {
            "put": lambda on: on.put(place, key, value),
            "delete": lambda on: on.delete(place, key),
            "get": lambda on: getattr(on.get(place, key), "value", None),
            "search": lambda on: found(on.search((root, *place[2:]), filter=wanted, limit=99)),
            "prefix": lambda on: on.list_namespaces(prefix=(root, *path), max_depth=depth),
            "suffix": lambda on: on.list_namespaces(prefix=(root,), suffix=path, max_depth=depth),
        }[kind]

    def found(items: list[Any]) -> list[Any]:
        return sorted((item.namespace, item.key, item.value["n"]) for item in items)

    kinds = ("put", "put", "put", "delete", "get", "search", "prefix", "suffix")
    results = [(each(store), each(own)) for each in (one(draw.choice(kinds)) for _ in range(400))]
    assert [ours for ours, _ in results] == [theirs for _, theirs in results]
    assert sum(bool(theirs) for _, theirs in results) > 100, "there was something to compare"


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 20, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_minutes(self, minutes: float) -> None:
        self.now += timedelta(minutes=minutes)


def test_items_end_reads_refresh_them_and_a_sweep_deletes_them() -> None:
    clock, place = Clock(), ("memories", "alice")
    options = {"embedder": "hash", "clock": clock}
    store = MemLongStore(":memory:", options=options, ttl={"default_ttl": 10})
    engine = store._place.memlong()
    store.put(place, "short", {"text": "gone soon"})
    store.put(place, "long", {"text": "stays"}, ttl=60)
    store.put(place, "ever", {"text": "stays for ever"}, ttl=None)
    for _ in range(4):
        clock.pass_minutes(8)
        assert store.get(place, "short") is not None, "each read begins its time anew"
    clock.pass_minutes(8)
    assert store.get(place, "short", refresh_ttl=False) is not None
    clock.pass_minutes(8)
    assert store.get(place, "short") is None
    assert keys(store.search(place, refresh_ttl=False)) == ["ever", "long"]
    assert len(engine.memories(user_id="alice").list()) == 3
    assert (store.sweep_ttl(), store.sweep_ttl()) == (1, 0)
    assert len(engine.memories(user_id="alice").list()) == 2
    clock.pass_minutes(50)
    store.put(place, "other", {"text": "new"})
    assert keys(store.search(place)) == ["other", "ever"]
    assert len(engine.memories(user_id="alice").list()) == 2, "putting swept what had ended"
    engine.close()


async def test_the_async_twins(store: MemLongStore, root: str) -> None:
    place = (root, "async")
    await asyncio.gather(*[store.aput(place, f"k{n}", {"n": n}) for n in range(5)])
    item = await store.aget(place, "k3")
    assert item is not None and item.value == {"n": 3}
    assert len(await store.asearch(place, filter={"n": {"$gte": 3}})) == 2
    assert await store.alist_namespaces(prefix=(root,)) == [place]
    await store.adelete(place, "k3")
    assert await store.aget(place, "k3") is None


async def test_bad_namespaces_and_values_are_refused(store: MemLongStore) -> None:
    for namespace in [(), ("a.b",), ("a", ""), (1,), ("langgraph", "a")]:
        with pytest.raises(InvalidNamespaceError):
            store.put(namespace, "k", {})
        with pytest.raises(InvalidNamespaceError):
            await store.aput(namespace, "k", {})
    with pytest.raises(InvalidNamespaceError):
        store.batch([PutOp(("a.b",), "k", {})])
    await store.abatch([PutOp(("langgraph", "a"), "k", {})])  # LangGraph's own, past `put`
    assert store.get(("langgraph", "a"), "k") is not None
    store.delete(("langgraph", "a"), "k")
    with pytest.raises(ConfigError, match="not JSON"):
        store.put(("fine",), "k", {"x": {1}})
    with pytest.raises(ConfigError, match=r"operator '\$near'"):
        store.put(("fine",), "k", {"x": 1})
        store.search(("fine",), filter={"x": {"$near": 1}})
    store.delete(("fine",), "k")


def test_an_item_of_a_user_is_recalled_into_that_users_attention(
    store: MemLongStore, chat: ChatMemLong, user: str
) -> None:
    place = ("memories", user)
    store.put(place, "dog", {"text": TOLD})
    off = chat.bind(write="off")
    reply = off.invoke(ASKED, of(user, "s"))
    assert recalls(reply) == [TOLD] and ANSWER in reply.text
    assert recalls(off.invoke(ASKED, of(f"not-{user}", "s"))) == []
    store.put(place, "dog", {"text": "My dog is called Bello."})
    assert recalls(off.invoke(ASKED, of(user, "s"))) == ["My dog is called Bello."]
    store.put((*place, "deeper"), "cat", {"content": {"text": "My cat is called Tom."}})
    assert recalls(off.invoke("What is my cat called?", of(user, "s"))) != []
    store.delete(place, "dog")
    assert recalls(off.invoke(ASKED, of(user, "s"))) != ["My dog is called Bello."]


def test_other_namespaces_and_templates_are_not_recalled(
    store: MemLongStore, chat: ChatMemLong, user: str
) -> None:
    own = MemLongStore(**PLACE, owner_template=("org", "*", "{user_id}"))
    never = MemLongStore(**PLACE, owner_template=None)
    off = chat.bind(write="off")
    store.put((user,), "dog", {"text": TOLD})
    store.put(("memories",), "dog", {"text": TOLD})
    store.put(("memories", user), "dog", {"text": TOLD}, index=False)
    never.put(("memories", user), "dog", {"text": TOLD})
    own.put(("org", "acme"), user, {"text": TOLD})
    assert recalls(off.invoke(ASKED, of(user, "s"))) == []
    own.put(("org", "acme", user), "dog", {"text": TOLD})
    assert recalls(off.invoke(ASKED, of(user, "s"))) == [TOLD]


def test_items_survive_a_restart_and_tenants_do_not_meet(tmp_path: Path) -> None:
    def opened(tenant: str) -> MemLongStore:
        options = {"embedder": "hash", "tenant": tenant}
        return MemLongStore(tmp_path / "bank", options=options)

    first = opened("one")
    first.put(("docs",), "k", {"n": 1})
    opened("two").put(("docs",), "other", {})
    first._place.memlong().close()
    again = opened("one")
    assert [item.value for item in again.search(("docs",))] == [{"n": 1}]
    assert keys(opened("two").search(())) == ["other"]
    for tenant in ("one", "two"):
        opened(tenant)._place.memlong().close()


def test_a_tool_of_an_agent_reads_and_writes_the_store(
    make_chat: Callable[..., ChatMemLong], store: MemLongStore, root: str
) -> None:
    @tool
    def note(text: str, runtime: ToolRuntime) -> str:
        """Note a text; says how many were noted before."""
        assert runtime.store is not None
        before = runtime.store.search((root,))
        runtime.store.put((root,), text, {"text": text})
        return f"{len(before)} before"

    chat = make_chat()
    agent = create_agent(chat, tools=[note], store=store)
    calls = [f'{{"name": "note", "arguments": {{"text": "{text}"}}}}' for text in ("tea", "milk")]
    with preferring(chat.memlong(), [*calls, "Done."]):
        state = agent.invoke({"messages": [("user", "Note tea and milk.")]})
    results = [message.text for message in state["messages"] if message.type == "tool"]
    assert results == ["0 before", "1 before"]
    assert keys(store.search((root,))) == ["milk", "tea"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"text": "tea", "other": 1}, "tea"),
        ({"kind": "Memory", "content": {"content": "likes tea"}}, "likes tea"),
        ({"fact": " ", "likes": "tea", "cups": 3, "none": None}, "fact:  . likes: tea. cups: 3"),
        ({}, ""),
    ],
)
def test_a_value_in_words(value: dict[str, Any], words: str) -> None:
    assert saying(value) == words
