"""Owners are strangers: what one does is invisible in what the other finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from memory_drafts import ALICE, BOB, Clock, draft, open_bank, texts

from memlong_agent.errors import MemoryNotFoundError
from memlong_agent.memory import MemoryBank
from memlong_agent.storage import Owner

OPERATIONS = 1000
# 12-token chunks and 720 tokens: at most 60 chunks, so that eviction happens again and again.
TOKENS, CAPACITY = 12, 720
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

    def one(self, rng: np.random.Generator, call: Callable[[MemoryBank, str], Any]) -> None:
        """Call for a memory that may have been evicted: then in both banks."""
        if not self.ids:
            return
        outcomes = []
        for bank, memory_id in zip((self.shared, self.alone), rng.choice(self.ids), strict=True):
            try:
                call(bank, str(memory_id))
                outcomes.append("done")
            except MemoryNotFoundError:
                outcomes.append("gone")
        assert len(set(outcomes)) == 1


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
    twin.one(rng, lambda bank, memory_id: bank.delete(twin.owner, [memory_id]))


def update(twin: Twin, rng: np.random.Generator) -> None:
    new = draft(note(rng, twin.owner), tokens=TOKENS)
    twin.one(rng, lambda bank, memory_id: bank.update(twin.owner, memory_id, new))


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
        assert twin.searches > 100
        assert twin.evicted > 100
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
