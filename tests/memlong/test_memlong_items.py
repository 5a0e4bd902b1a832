"""Items through the front door: found by meaning, recalled into attention, forgotten for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from memlong_agent import ConfigError, MemLong

Open = Callable[..., MemLong]
ALICE = ("memories", "alice")
REX: dict[str, Any] = {"text": "My dog is called Rex."}


def put_rex(ml: MemLong, **options: Any) -> None:
    options = {"remember": REX["text"], "user_id": "alice", "texts": [REX["text"]], **options}
    ml.items().put(ALICE, "dog", REX, **options)


def recalled(ml: MemLong, user: str = "alice") -> list[str]:
    session = ml.session("asks", user_id=user)
    reply = session.chat("What is my dog called?", write=False, max_tokens=4)
    return [recall.text for recall in reply.recalled]


def test_a_remembered_item_is_recalled_by_its_user_only_and_changes_with_its_value(
    open_memlong: Open,
) -> None:
    ml = open_memlong()
    put_rex(ml)
    put_rex(ml)
    assert recalled(ml) == ["My dog is called Rex."] and recalled(ml, "bob") == []
    put_rex(ml, remember="My dog is called Bello.")
    assert recalled(ml) == ["My dog is called Bello."]
    assert len(ml.memories(user_id="alice").list()) == 1
    ml.items().put(ALICE, "dog", REX)
    assert recalled(ml) == [], "no longer remembered"
    assert ml.items().get(ALICE, "dog") is not None
    assert ml.engine.bank.verify() == []


def test_a_deleted_item_is_forgotten_and_forgetting_deletes_the_item(open_memlong: Open) -> None:
    ml = open_memlong()
    put_rex(ml)
    ml.items().delete(ALICE, "dog")
    assert recalled(ml) == [] and ml.memories(user_id="alice").list() == []
    put_rex(ml)
    (memory,) = ml.memories(user_id="alice").list()
    ml.memories(user_id="alice").delete(memory.id)
    assert ml.items().get(ALICE, "dog") is None
    put_rex(ml)
    ml.memories(user_id="alice").clear()
    assert ml.items().namespaces() == []


def test_an_item_whose_time_is_over_is_swept_with_its_memory(open_memlong: Open) -> None:
    ml = open_memlong()  # its clock ticks a minute a reading
    put_rex(ml, ttl_s=30.0)
    assert ml.items().get(ALICE, "dog") is None
    assert ml.items().sweep() == 1 and ml.items().sweep() == 0
    assert ml.memories(user_id="alice").list() == []
    put_rex(ml, ttl_s=30.0)
    assert recalled(ml) == []  # a turn forgets what is over first
    assert ml.items().sweep() == 0
    assert ml.memories(user_id="alice").list() == []


def test_items_are_found_by_meaning_and_survive_a_restart(open_memlong: Open) -> None:
    first = open_memlong()
    put_rex(first)
    for key, text in (("tea", "I drink green tea."), ("job", "I work as a baker.")):
        first.items().put(("notes",), key, {"text": text}, texts=[text])
    first.items().put(("notes",), "mute", {"text": "dog dog dog"})
    first.close()
    items = open_memlong().items()
    found = items.search(query="the dog is called Rex")
    assert found[0][0].value == REX and found[0][1] is not None and found[0][1] > 0.5
    assert found[-1][0].key == "mute" and found[-1][1] is None
    best = [item.key for item, _ in items.search(("notes",), query="a baker's work", limit=1)]
    assert best == ["job"]
    assert [item.key for item, _ in items.search(("notes",), limit=2)] == ["mute", "job"]
    accepted = items.search(accept=lambda value: "tea" in value["text"])
    assert [item.key for item, _ in accepted] == ["tea"]


def test_a_turn_answered_elsewhere_is_remembered_once(open_memlong: Open) -> None:
    ml = open_memlong()
    memories = ml.memories(user_id="alice", session_id="a")
    first = memories.add_turn("My dog is called Rex.", "Noted.")
    assert memories.add_turn("My dog is called Rex.", "Nice name.").id == first.id
    (kept,) = memories.list()
    assert kept.text == "User: My dog is called Rex.\nAssistant: Nice name."
    unknown = memories.add_turn("Where is my key?", "I don't know.")
    assert unknown.id != first.id
    texts = [recall.text for recall in memories.search("Where is my key? I don't know.")]
    assert "Where is my key?" in texts, "what abstained is not worth recalling"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ttl_s": 0.0}, "ttl_s"),
        ({"remember": "a\0b"}, "NUL"),
    ],
)
def test_a_bad_item_leaves_nothing(open_memlong: Open, change: dict[str, Any], says: str) -> None:
    ml = open_memlong()
    with pytest.raises(ConfigError, match=says):
        put_rex(ml, **change)
    with pytest.raises(ConfigError, match="label"):
        ml.items().put(("",), "k", {}, remember="x", user_id="alice")
    with pytest.raises(ConfigError, match="not JSON"):
        ml.items().put(ALICE, "k", {"x": {1}}, remember="x", user_id="alice")
    assert ml.items().namespaces() == []
    assert ml.memories(user_id="alice").list() == []
