"""Eviction, on scripted ages and counters: golden lists, and what holds for all lists."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_drafts import START

from memlong_agent.config import Eviction
from memlong_agent.memory import victims
from memlong_agent.storage import ChunkAge

POLICIES: list[Eviction] = ["counter", "fifo", "lru"]


def chunk(
    pk: int,
    counter: int = 0,
    tokens: int = 10,
    *,
    made: int | None = None,
    used: int | None = None,
    pending: str | None = None,
) -> ChunkAge:
    """Made `made` seconds after the start (default: in the order of keys)."""
    at = [None if s is None else START + timedelta(seconds=s) for s in (made, used)]
    return ChunkAge(pk, tokens, counter, at[0] or START + timedelta(seconds=pk), at[1], pending)


TWENTY = [chunk(pk, counter=(0, 3, 1, 0)[pk % 4]) for pk in range(1, 21)]  # 200 tokens


def test_nothing_goes_while_all_fit() -> None:
    for policy in POLICIES:
        assert victims(TWENTY, 200, policy) == []
        assert victims([], 256, policy) == []


def test_counter_takes_the_oldest_tenth_then_the_least_recalled() -> None:
    # Oldest two: 1, 2. Newest two stay: 19, 20. Of the middle the zeros by age, then one "1":
    # eleven chunks of 10 tokens leave 90, ten would leave 100, above half of 198.
    assert victims(TWENTY, 198, "counter") == [1, 2, 3, 4, 7, 8, 11, 12, 15, 16, 6]


def test_counter_keeps_the_last_one_written_when_the_clock_was_put_back() -> None:
    ages = [*(chunk(pk) for pk in range(1, 10)), chunk(10, made=-99_999)]
    assert 10 not in victims(ages, 50, "counter")
    assert victims(ages, 10, "counter") == list(range(1, 10))


@pytest.mark.parametrize("policy", POLICIES)
def test_eviction_stops_at_half_exactly(policy: Eviction) -> None:
    ages = [*TWENTY, chunk(21)]  # 210 tokens: 11 chunks of 10 leave exactly half of 200
    assert len(victims(ages, 200, policy)) == 11
    assert len(victims(ages, 199, policy)) == 12


def test_counter_takes_the_oldest_tenth_even_when_often_recalled() -> None:
    ages = [chunk(1, counter=99), *(chunk(pk) for pk in range(2, 11))]
    assert victims(ages, 99, "counter") == [1, 2, 3, 4, 5, 6]
    assert victims(ages[:9], 89, "counter") == [2, 3, 4, 5, 6]  # a tenth of nine is none


def test_counter_keeps_the_newest_tenth_rounded_up() -> None:
    assert victims([chunk(1, 5, 300), chunk(2, 0, 300)], 400, "counter") == [1]
    assert victims([chunk(1, tokens=500)], 400, "counter") == []


def test_age_is_the_time_of_the_memory_and_then_the_key() -> None:
    ages = [chunk(1, made=50), chunk(2, made=10), chunk(3, made=10), chunk(4, made=60)]
    assert victims(ages, 39, "counter") == [2, 3, 1]


def test_fifo_goes_by_writing_not_by_the_time_of_the_memory() -> None:
    ages = [chunk(1, made=90), chunk(2, made=5), chunk(3), chunk(4)]
    assert victims(ages, 39, "fifo") == [1, 2, 3]


def test_lru_goes_by_last_recall_and_never_counts_as_made() -> None:
    ages = [chunk(1, used=100), chunk(2), chunk(3, used=50), chunk(4, made=60)]
    assert victims(ages, 39, "lru") == [2, 3, 4]


@pytest.mark.parametrize("policy", POLICIES)
def test_safe_and_pending_chunks_stay(policy: Eviction) -> None:
    ages = [chunk(pk, pending="turn" if pk in (1, 12) else None) for pk in range(1, 21)]
    gone = victims(ages, 199, policy, safe={2, 3})
    assert not {1, 2, 3, 12} & set(gone)
    assert len(gone) == 11  # 200 - 110 tokens, the first count below half of 199


CHUNKS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.integers(1, 128),
        st.integers(0, 30),
        st.none() | st.integers(0, 60),
        st.sampled_from([None, None, None, "turn"]),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(CHUNKS, st.integers(1, 3000), st.sampled_from(POLICIES), st.sets(st.integers(1, 60)))
def test_half_or_only_what_is_protected_is_left(
    rows: list[tuple[int, int, int, int | None, str | None]],
    capacity: int,
    policy: Eviction,
    safe: set[int],
) -> None:
    ages = [
        chunk(pk, counter, tokens, made=made, used=used, pending=pending)
        for pk, (counter, tokens, made, used, pending) in enumerate(rows, 1)
    ]
    gone = victims(ages, capacity, policy, safe)
    left = [each for each in ages if each.pk not in set(gone)]
    assert len(gone) == len(set(gone)) == len(ages) - len(left)
    assert safe & {each.pk for each in ages} <= {each.pk for each in left}
    assert [each for each in ages if each.pending] == [each for each in left if each.pending]
    total = sum(each.tokens for each in ages)
    if total <= capacity:
        assert gone == []
        return
    by_age = sorted(ages, key=lambda each: (each.pk == len(ages), each.created_at, each.pk))
    newest = by_age[len(ages) - -(-len(ages) // 10) :]
    protected = {each.pk for each in ages if each.pending} | safe
    if policy == "counter":
        protected |= {each.pk for each in newest}
        assert not set(gone) & {each.pk for each in newest}
    used = sum(each.tokens for each in left)
    assert 2 * used <= capacity or {each.pk for each in left} <= protected
    if len(gone) > len(ages) // 10:  # past the oldest tenth, nothing goes without need
        last = next(each for each in ages if each.pk == gone[-1])
        assert 2 * (used + last.tokens) > capacity
