"""Items: values under a namespace and a key, their end, and the memories they are bound to."""

from __future__ import annotations

import threading
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import pytest
from bank_making import ALICE, BOB, NOON, Clock, memory

from memlong_agent.embedding import resolve_embedder
from memlong_agent.errors import ConfigError, MemoryNotFoundError
from memlong_agent.memory import ItemBank
from memlong_agent.storage import Binding, NewItem, Storage

T = "default"
PREFS = ("users", "alice", "prefs")


def keys(bank: Storage, prefix: tuple[str, ...] = (), **options: int) -> list[str]:
    return [item.key for item in bank.items.list(T, prefix, **{"limit": 100, **options})]


def bound_item(bank: Storage, key: str = "k", **fields: float) -> Binding:
    """An item of Alice's, bound to a memory of hers."""
    binding = Binding(ALICE, bank.add(ALICE, [memory("tea")])[0].id)
    bank.items.put(T, NewItem(("memories", "alice"), key, {"text": "tea"}, bound=binding, **fields))
    return binding


def test_what_is_put_comes_back_and_a_second_put_keeps_its_birth(
    bank: Storage, clock: Clock
) -> None:
    value = {"text": "tea", "n": [1, None, {"deep": True}], "名": "茶"}
    vectors = np.eye(2, 6, dtype=np.float32)
    assert bank.items.put(T, NewItem(PREFS, "drink", value, vectors)) is None
    item = bank.items.get(T, PREFS, "drink")
    assert item is not None and item.value == value and item.bound is None
    assert (item.namespace, item.created_at, item.updated_at) == (PREFS, NOON, NOON)
    (listed,) = bank.items.list(T, PREFS, limit=1, vectors=True)
    assert listed.vectors is not None and np.array_equal(listed.vectors.reshape(2, 6), vectors)
    clock.pass_s(60)
    bank.items.put(T, NewItem(PREFS, "drink", {"text": "milk"}))
    again = bank.items.get(T, PREFS, "drink")
    assert again is not None and again.value == {"text": "milk"} and again.pk == item.pk
    assert (again.created_at, again.updated_at) == (NOON, NOON + timedelta(minutes=1))


def test_tenants_namespaces_and_keys_do_not_meet(bank: Storage) -> None:
    for namespace in (("a",), ("a", "b"), ("ab",), ("a!",)):
        bank.items.put(T, NewItem(namespace, "k", {"at": list(namespace)}))
    bank.items.put("other", NewItem(("a",), "k", {}))
    assert bank.items.get(T, ("a",), "other") is None and bank.items.get(T, ("b",), "k") is None
    below = {item.namespace for item in bank.items.list(T, ("a",), limit=9)}
    assert below == {("a",), ("a", "b")}
    assert bank.items.namespaces(T) == [("a",), ("a", "b"), ("a!",), ("ab",)]
    assert bank.items.namespaces("other") == [("a",)]


def test_the_last_written_comes_first_page_by_page(bank: Storage, clock: Clock) -> None:
    for number in range(5):
        bank.items.put(T, NewItem(PREFS, f"k{number}", {}))
        clock.pass_s(1)
    bank.items.put(T, NewItem(PREFS, "k1", {}))
    assert keys(bank) == ["k1", "k4", "k3", "k2", "k0"]
    assert keys(bank, limit=2, offset=1) == ["k4", "k3"]


def test_an_item_ends_and_a_refresh_begins_its_time_anew(bank: Storage, clock: Clock) -> None:
    binding = bound_item(bank, ttl_s=60.0)
    clock.pass_s(50)
    assert bank.items.get(T, ("memories", "alice"), "k", refresh=True) is not None
    clock.pass_s(50)
    assert keys(bank) == ["k"]
    assert len(bank.recallable_pks(ALICE)) == 1, "the memory lives as long as its item"
    clock.pass_s(10)
    assert bank.items.get(T, ("memories", "alice"), "k") is None
    assert keys(bank) == [] and bank.items.namespaces(T) == []
    assert len(bank.recallable_pks(ALICE)) == 0
    assert bank.items.binding(T, ("memories", "alice"), "k") == (True, binding)
    bank.items.put(T, NewItem(("memories", "alice"), "k", {"text": "new"}))
    item = bank.items.get(T, ("memories", "alice"), "k")
    assert item is not None and item.created_at == clock.now, "what had ended was born again"


def test_what_is_over_is_deleted_and_says_what_it_was_bound_to(bank: Storage, clock: Clock) -> None:
    binding = bound_item(bank, ttl_s=60.0)
    bank.items.put(T, NewItem(PREFS, "free", {}, ttl_s=30.0))
    bank.items.put(T, NewItem(PREFS, "stays", {}, ttl_s=90.0))
    assert bank.items.end(T, 9) == []
    clock.pass_s(60)
    assert bank.items.end(T, 1) == [None] and bank.items.end(T, 9) == [binding]
    assert bank.items.end(T, 9) == [] and keys(bank) == ["stays"]
    assert bank.items.binding(T, PREFS, "free") == (False, None)


def test_a_deleted_item_is_gone_and_says_what_it_was_bound_to(bank: Storage) -> None:
    binding = bound_item(bank)
    assert bank.items.delete(T, ("memories", "alice"), "k") == binding
    assert bank.unpurged()
    bank.purge()
    assert bank.items.delete(T, ("memories", "alice"), "k") is None and not bank.unpurged()
    assert bank.get(ALICE, binding.memory_id).text == "tea", "the memory is the caller's to delete"


def test_forgetting_takes_bound_items_along_and_eviction_leaves_them(bank: Storage) -> None:
    forgotten, evicted = bound_item(bank, "forgotten"), bound_item(bank, "evicted")
    bank.delete_chunks(ALICE, bank.get(ALICE, evicted.memory_id).chunk_pks)
    assert keys(bank) == ["evicted", "forgotten"]
    bank.delete(ALICE, [forgotten.memory_id])
    assert keys(bank) == ["evicted"]
    item = bank.items.get(T, ("memories", "alice"), "evicted")
    assert item is not None and item.bound is None
    bank.items.put(T, NewItem(PREFS, "nobody's", {}))
    bank.clear(BOB)
    bank.clear(ALICE)
    assert keys(bank) == ["nobody's"], "clearing an owner clears the owner's items"


def test_a_binding_must_exist(bank: Storage) -> None:
    with pytest.raises(MemoryNotFoundError):
        bank.items.put(T, NewItem(PREFS, "k", {}, bound=Binding(ALICE, "0" * 32)))
    assert keys(bank) == []


@pytest.mark.parametrize(
    ("namespace", "value", "said"),
    [
        (("a", ""), {}, "cannot be a label"),
        (("a\x1fb",), {}, "cannot be a label"),
        (("a\ud800",), {}, "cannot be a label"),
        (("a",), {"x": {1}}, "not JSON"),
        (("a",), {"x": float("nan")}, "not JSON"),
    ],
)
def test_what_cannot_be_an_item_is_refused(
    bank: Storage, namespace: tuple[str, ...], value: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        bank.items.put(T, NewItem(namespace, "k", value))
    assert keys(bank) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"key": "a\ud800"}, "cannot be a key"),
        ({"key": "a\0b"}, "cannot be a key"),
        ({"ttl_s": float("inf")}, "beyond the calendar.*None"),
        ({"ttl_s": float("nan")}, "beyond the calendar.*None"),
        ({"ttl_s": 1e12}, "beyond the calendar.*None"),
    ],
)
def test_a_key_or_an_end_that_cannot_be_kept_is_one_sentence(
    bank: Storage, fields: dict[str, Any], said: str
) -> None:
    new = NewItem(PREFS, **{"key": "k", "value": {}, **fields})
    for call in (bank.items.check, partial(bank.items.put, T)):
        with pytest.raises(ConfigError, match=said):
            call(new)
    assert keys(bank) == []


def test_threads_put_one_key_and_the_last_wins_whole(bank: Storage) -> None:
    threads = [
        threading.Thread(target=bank.items.put, args=(T, NewItem(PREFS, "k", {"n": [n, n]})))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (item,) = bank.items.list(T, limit=9)
    assert item.value["n"][0] == item.value["n"][1]


def test_a_search_looks_at_all_items(bank: Storage) -> None:
    for at in range(12):
        bank.items.put(T, NewItem(PREFS, f"k{at}", {"even": at % 2 == 0}))
    items = ItemBank(bank, resolve_embedder("lexical", None))
    asked: Any = {"query": None, "accept": lambda value: value["even"]}
    some = items.search(T, PREFS, limit=4, offset=4, **asked)
    assert [item.key for item, _ in some] == ["k2", "k0"]
