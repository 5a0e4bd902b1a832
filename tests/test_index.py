"""Both back ends against brute force in float64, and against each other, ties included."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memlong_agent.errors import ConfigError
from memlong_agent.index import FaissIndex, TorchIndex, make_index, rescore

BACKENDS = ["torch", "faiss"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "faiss":
        pytest.importorskip("faiss")
    return request.param


def unit(vectors):
    vectors = np.asarray(vectors, np.float64)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def brute_force(query, ids, vectors, k):
    """The k best by float64 cosine rounded to fp32, ties by id."""
    scores = {
        int(i): np.float32(np.dot(v.astype("f8"), query.astype("f8")))
        for i, v in zip(ids, vectors, strict=True)
    }
    return sorted(scores, key=lambda i: (-scores[i], i))[:k]


def fp16(vectors):
    return vectors.astype(np.float16).astype(np.float32)


def test_search_finds_what_brute_force_finds_through_adds_and_removals(backend):
    rng = np.random.default_rng(1)
    index = make_index(24, backend)
    bank: dict[int, np.ndarray] = {}
    next_id = 0
    for _ in range(40):
        count = int(rng.integers(1, 120))
        ids = rng.permutation(np.arange(next_id, next_id + count)).astype(np.int64) * 7
        next_id += count
        vectors = unit(rng.normal(size=(count, 24)))
        index.add(ids, vectors)
        bank.update(zip(ids.tolist(), vectors, strict=True))
        gone = rng.choice(
            sorted(bank), size=min(len(bank) - 1, int(rng.integers(0, 60))), replace=False
        )
        assert index.remove(gone) == len(gone)
        for i in gone.tolist():
            del bank[i]
        assert len(index) == len(bank)
        query = unit(rng.normal(size=24))
        found, scores = index.search(query, 12)
        rows = fp16(np.array(list(bank.values())))
        assert found.tolist() == brute_force(query, list(bank), rows, 12)
        assert found.dtype == np.int64
        assert scores.dtype == np.float32
        exact = np.array([bank[i] @ query for i in found.tolist()])
        assert np.abs(scores - exact).max() < 1e-3
    assert len(index) > 1024  # the torch rows grew at least once


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_search_among_allowed_ids_is_search_without_the_others(backend, share):
    rng = np.random.default_rng(2)
    ids = np.arange(900, dtype=np.int64) + 5
    vectors = unit(rng.normal(size=(900, 16)))
    index = make_index(16, backend)
    index.add(ids, vectors)
    allowed = rng.choice(ids, size=int(900 * share), replace=False)
    query = unit(rng.normal(size=16))
    asked = np.concatenate([allowed, allowed[:3], [10**9]])  # repeated and unknown ids do no harm
    found, _ = index.search(query, 20, asked)
    assert found.tolist() == brute_force(query, allowed, fp16(vectors[allowed - 5]), 20)


def test_nothing_to_find_is_an_empty_answer(backend):
    index = make_index(4, backend)
    query = unit([1, 2, 3, 4])
    for allowed in (None, np.array([3], np.int64)):
        ids, scores = index.search(query, 5, allowed)
        assert ids.shape == scores.shape == (0,)
    index.add(np.array([1], np.int64), unit([[1, 0, 0, 0]]))
    assert index.search(query, 5, np.array([], np.int64))[0].tolist() == []
    assert index.search(query, 5, np.array([2], np.int64))[0].tolist() == []
    assert index.search(query, 5)[0].tolist() == [1]
    assert index.remove(np.array([1, 9], np.int64)) == 1
    assert index.search(query, 5)[0].tolist() == []
    index.add(np.array([1], np.int64), unit([[0, 1, 0, 0]]))
    assert index.search(query, 5)[0].tolist() == [1]


def test_equal_rows_are_found_by_lowest_id_wherever_they_lie(backend):
    """FAISS's heap and a blocked matmul keep different ones of 500 equal rows if left alone."""
    rng = np.random.default_rng(3)
    same = rng.normal(size=33)
    vectors = unit(np.vstack([rng.normal(size=(300, 33)), np.tile(same, (500, 1))]))
    ids = rng.permutation(800).astype(np.int64)
    index = make_index(33, backend)
    index.add(ids, vectors)
    expected = sorted(ids[300:].tolist())[:8]
    assert index.search(unit(same), 8)[0].tolist() == expected
    allowed = np.array(expected[1::2] + ids[:300].tolist(), np.int64)
    assert index.search(unit(same), 4, allowed)[0].tolist() == expected[1::2]


@st.composite
def tied_bank(draw):
    """Rows drawn from few distinct vectors, some a hair apart: ties at every border."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dimensions = draw(st.sampled_from([3, 17, 64]))
    distinct = rng.normal(size=(draw(st.integers(1, 12)), dimensions))
    count = draw(st.integers(1, 400))
    vectors = distinct[rng.integers(0, len(distinct), size=count)]
    vectors = vectors + rng.choice([0.0, 1e-7, 1e-4], size=(count, 1)) * rng.normal(
        size=vectors.shape
    )
    ids = rng.choice(10_000, size=count, replace=False).astype(np.int64)
    near = draw(st.booleans())
    query = distinct[0] if near else rng.normal(size=dimensions)
    return unit(query), ids, unit(vectors), draw(st.integers(1, 20))


@settings(max_examples=80, deadline=None)
@given(bank=tied_bank())
def test_faiss_and_torch_give_the_same_ids_and_scores_on_tied_rows(bank):
    pytest.importorskip("faiss")
    query, ids, vectors, k = bank
    row_of = {int(i): row for row, i in enumerate(ids)}
    answers = []
    for backend in BACKENDS:
        index = make_index(len(query), backend)
        index.add(ids, vectors)
        candidates, scores = index.search(query, 4 * k)
        rows = np.array([row_of[int(i)] for i in candidates])
        final, cosines = rescore(query, candidates, vectors[rows], k)
        answers.append([a.tolist() for a in (candidates, scores, final, cosines)])
    assert answers[0] == answers[1]
    assert answers[0][0] == brute_force(query, ids, fp16(vectors), 4 * k)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 12))
def test_rescored_candidates_are_the_best_of_the_whole_bank(seed, k):
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(600, 48)))
    vectors[300:] = vectors[rng.integers(0, 300, size=300)]  # half of them said again
    ids = rng.permutation(600).astype(np.int64)
    query = unit(rng.normal(size=48))
    index = TorchIndex(48)
    index.add(ids, vectors)
    candidates, _ = index.search(query, 4 * k)
    rows = np.array([int(np.flatnonzero(ids == i)[0]) for i in candidates])
    final, scores = rescore(query, candidates, vectors[rows], k)
    assert final.tolist() == brute_force(query, ids, vectors, k)
    assert (np.diff(scores) <= 0).all()


def test_a_rescored_cosine_depends_on_its_row_alone():
    rng = np.random.default_rng(4)
    vectors = unit(rng.normal(size=(100, 385)))
    query = unit(rng.normal(size=385))
    _, together = rescore(query, np.arange(100), np.asfortranarray(vectors), 100)
    alone = [rescore(query, np.array([i]), vectors[i : i + 1], 1)[1][0] for i in range(100)]
    assert together.tolist() == sorted(alone, reverse=True)


def test_vectors_of_any_length_are_searched_by_angle(backend):
    index = make_index(2, backend)
    index.add(np.array([1, 2], np.int64), np.array([[100.0, 90.0], [0.5, 0.0]], np.float32))
    ids, scores = index.search(np.array([3.0, 0.0], np.float32), 2)
    assert ids.tolist() == [2, 1]
    assert scores[0] == 1.0


def test_wrong_input_is_refused_and_adds_nothing(backend):
    index = make_index(3, backend)
    index.add(np.array([4], np.int64), unit([[1, 0, 0]]))
    one = unit([[0, 1, 0]])
    nan, inf = one.copy(), one.copy()
    nan[0, 1], inf[0, 2] = np.nan, np.inf
    for ids, vectors, message in [
        ([4], one, "id 4 is given twice"),
        ([5, 5], np.vstack([one, one]), "id 5 is given twice"),
        ([5, 6], one, "2 ids for 1 vectors"),
        ([-1], one, "negative"),
        ([5], one[:, :2], "holds 3 dimensions"),
        ([5], one[0], "holds 3 dimensions"),
        ([5], nan, "Vector 0 is zero or not finite"),
        ([5], inf, "Vector 0 is zero or not finite"),
        ([5], one * 0, "Vector 0 is zero or not finite"),
    ]:
        with pytest.raises(ConfigError, match=message):
            index.add(np.array(ids, np.int64), vectors)
    with pytest.raises(ConfigError, match="whole numbers"):
        index.add(np.array([5.0]), one)
    with pytest.raises(ConfigError, match="holds 3 dimensions"):
        index.search(one[0, :2], 1)
    with pytest.raises(ConfigError, match="one vector"):
        index.search(one, 1)
    with pytest.raises(ConfigError, match="k=0"):
        index.search(one[0], 0)
    index.add(np.array([], np.int64), np.empty((0, 3), np.float32))
    assert len(index) == 1
    assert index.search(one[0], 5)[0].tolist() == [4]


def test_rescore_and_make_index_refuse_what_does_not_fit():
    with pytest.raises(ConfigError, match="one vector an id"):
        rescore(np.ones(3, np.float32), np.array([1, 2]), np.ones((1, 3), np.float32), 1)
    with pytest.raises(ConfigError, match="0 dimensions"):
        make_index(0)
    with pytest.raises(ConfigError, match='"auto", "faiss" or "torch"'):
        make_index(3, "annoy")


def test_without_faiss_auto_is_torch_and_faiss_names_its_extra(monkeypatch):
    found = importlib.util.find_spec

    def hidden(name, package=None):
        return None if name == "faiss" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    assert isinstance(make_index(3), TorchIndex)
    with pytest.raises(ConfigError, match=r'pip install "memlong-agent\[faiss\]"'):
        make_index(3, "faiss")


def test_faiss_leaves_thread_counts_as_they_were():
    faiss = pytest.importorskip("faiss")
    import torch

    at_first = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        before = faiss.omp_get_max_threads(), torch.get_num_threads()
        index = make_index(3)
        assert isinstance(index, FaissIndex)
        index.add(np.array([1], np.int64), unit([[1, 0, 0]]))
        index.search(unit([1, 0, 0]), 1)
        index.remove(np.array([1], np.int64))
        assert (faiss.omp_get_max_threads(), torch.get_num_threads()) == before
    finally:
        faiss.omp_set_num_threads(at_first)


def test_importing_the_room_loads_no_heavy_package():
    code = (
        "import sys, memlong_agent.index; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'faiss', 'sqlalchemy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_last_event_starts_at_zero_and_is_the_callers(backend):
    index = make_index(3, backend)
    assert index.last_event == 0
    index.last_event = 41
    index.add(np.array([1], np.int64), unit([[1, 0, 0]]))
    assert index.last_event == 41
