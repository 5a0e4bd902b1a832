"""Owners are strangers: what one does is invisible in what the other finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from memory_drafts import ALICE, BOB, Clock, draft, open_bank, texts

from memlong_agent.memory import MemoryBank
from memlong_agent.storage import Owner

OPERATIONS = 150
# 12-token chunks and 1,200 tokens: at most 100 chunks, so that eviction happens again and again.
TOKENS, CAPACITY = 12, 1200
WORDS = [f"{kind}{i}" for kind in ("wood", "stone") for i in range(30)]


@dataclass
class Twin:
    """One owner in the shared bank, and alone in a bank of its own."""

    owner: Owner
    shared: MemoryBank
    alone: MemoryBank
    ids: list[tuple[str, str]] = field(default_factory=list)
    searches: int = 0
    evicted: int = 0

    def both(self, call: Callable[[MemoryBank], Any]) -> tuple[Any, Any]:
        return call(self.shared), call(self.alone)

    def still(self) -> list[tuple[str, str]]:
        """Ids that eviction has left, in either bank."""
        here, there = self.both(lambda bank: {each.id for each in bank.list(self.owner)})
        left = [pair for pair in self.ids if pair[0] in here or pair[1] in there]
        assert all(one in here and other in there for one, other in left)
        self.ids = left
        return left


@pytest.fixture
def twins() -> Iterator[list[Twin]]:
    with ExitStack() as stack:
        clock = Clock()

        def new() -> MemoryBank:
            return stack.enter_context(open_bank(capacity_tokens=CAPACITY, clock=clock))

        shared = new()
        yield [Twin(owner, shared, new()) for owner in (ALICE, BOB)]


def note(rng: np.random.Generator, owner: Owner) -> str:
    return f"{owner.name} says {' '.join(rng.choice(WORDS, 5))}"


def add(twin: Twin, rng: np.random.Generator) -> None:
    bodies = [note(rng, twin.owner) for _ in range(int(rng.integers(1, 4)))]
    new = draft(*bodies, tokens=TOKENS, session=f"s{rng.integers(3)}")
    one, other = twin.both(lambda bank: bank.add(twin.owner, [new]))
    assert one.evicted == other.evicted
    twin.evicted += one.evicted
    twin.ids.append((one.memories[0].id, other.memories[0].id))


def search(twin: Twin, rng: np.random.Generator) -> None:
    query = " ".join(rng.choice(WORDS, 3))
    session = [None, "s0", "s1"][int(rng.integers(3))]
    scope = "session" if session else "owner"
    one, other = twin.both(
        lambda bank: bank.recall(twin.owner, query, top_k=5, scope=scope, session=session)
    )
    assert texts(one) == texts(other)
    assert [hit.score for hit in one] == [hit.score for hit in other]
    assert [hit.rank for hit in one] == [hit.rank for hit in other]
    assert all(text.startswith(f"{twin.owner.name} says ") for text in texts(one))
    turn = f"turn{twin.searches}"
    for bank, hits in ((twin.shared, one), (twin.alone, other)):
        bank.mark(twin.owner, turn, [(h.chunk.pk, h.rank, h.score, None) for h in hits])
    twin.searches += 1


def delete(twin: Twin, rng: np.random.Generator) -> None:
    if left := twin.still():
        pair = left.pop(int(rng.integers(len(left))))
        twin.shared.delete(twin.owner, [pair[0]])
        twin.alone.delete(twin.owner, [pair[1]])


def update(twin: Twin, rng: np.random.Generator) -> None:
    if left := twin.still():
        pair = left[int(rng.integers(len(left)))]
        new = draft(note(rng, twin.owner), tokens=TOKENS)
        twin.shared.update(twin.owner, pair[0], new)
        twin.alone.update(twin.owner, pair[1], new)


def test_a_thousand_interleaved_operations_never_meet(twins: list[Twin]) -> None:
    rng = np.random.default_rng(2026)
    kinds = [add, add, add, search, search, delete, update]
    for _ in range(OPERATIONS):
        twin = twins[int(rng.integers(2))]
        kinds[int(rng.integers(len(kinds)))](twin, rng)
    for twin in twins:
        search(twin, rng)
        here, there = twin.both(lambda bank, own=twin.owner: bank.list(own))
        assert texts(here) == texts(there)
        assert twin.searches > 10
        assert twin.evicted > 10
    assert twins[0].shared.verify() == []


def test_a_user_and_a_session_of_the_same_name_never_meet() -> None:
    user, session = Owner("default", "user", "x"), Owner("default", "session", "x")
    other_tenant = Owner("other", "user", "x")
    with open_bank() as bank:
        for owner in (user, session, other_tenant):
            bank.add(owner, [draft(f"zebra {owner.tenant} {owner.kind}")])
        for owner in (user, session, other_tenant):
            found = texts(bank.recall(owner, "zebra", top_k=8))
            assert found == [f"zebra {owner.tenant} {owner.kind}"]
