"""Exact search over unit vectors.

In: ids with vectors (N, E); a query (E,). Out: ids and cosines, best first. Both back ends keep
fp16 rows and give the same answer, bit for bit, ties included. The index is a cache: it knows no
text, no owner and no disk, and forgets everything with its process.

Letters: N vectors, E embedding dimensions, k results.
"""

from __future__ import annotations

import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from memlong_agent.errors import ConfigError

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]
Backend = Literal["auto", "faiss", "torch"]

_BLOCK_ROWS = 8192  # 12.6 MB of fp32 at E = 384
_FIRST_ROWS = 1024


class VectorIndex(Protocol):
    """An exact cosine index. Not thread-safe: the caller lets one call in at a time."""

    last_event: int
    """Number of the last bank event that is in the index, stamped by the caller; 0 at first."""

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add vectors (N, E) under ids (N,), each >= 0; other lengths are scaled to unit length.

        Raises `ConfigError`, and adds nothing, for an id given twice or already there, another
        shape, or a row that is zero or not finite.
        """

    def remove(self, ids: Ids) -> int:
        """Remove these ids, ignoring unknown ones; how many were there."""

    def search(self, query: Vectors, k: int, allowed: Ids | None = None) -> tuple[Ids, Vectors]:
        """The k best among `allowed` (all when None): ids (<= k,) and cosines of the fp16 rows.

        Ordered by (-cosine, id): of equal rows the lowest ids are found, in every back end. Ask
        for more than you need (4 x top_k) and let :func:`rescore` order them in fp32.
        """

    def __len__(self) -> int: ...


class _FP16Index(ABC):
    """What both back ends share: the checks, and the final order.

    A back end gives a superset of the k best, found with its own fp32 sums, which depend on the
    library and on where a row lies. Cosines are then summed again in float64, where two equal rows
    cannot differ, and ordered. Both hold the same fp16 rows, so both end with the same ids.
    """

    def __init__(self, dimensions: int) -> None:
        if dimensions < 1:
            raise ConfigError(f"An index of {dimensions} dimensions is empty. Use 1 or more.")
        self.last_event = 0
        self._dimensions = dimensions
        # Which id is in which row, and nothing else: eight bytes a vector, where a dict takes 130.
        # Looking 500 up among 1e5 takes 1.2 ms.
        self._held = np.empty(_FIRST_ROWS, np.int64)  # (capacity,)
        self._rows = 0
        # Two rows whose float64 cosines are ordered one way can be ordered the other way in fp32
        # only within twice the bound E * 2**-24 of a sum of E products of unit vectors; 2e-6 more
        # because fp16 rows are unit only to 2**-11 and to leave air.
        self._slack = 2 * (dimensions + 8) * 2.0**-24 + 2e-6

    def add(self, ids: Ids, vectors: Vectors) -> None:
        ids = _as_ids(ids)
        rows = self._unit(vectors)
        if rows.shape[0] != ids.size:
            raise ConfigError(f"{ids.size} ids for {rows.shape[0]} vectors. Pass one id a vector.")
        if ids.size == 0:
            return
        if ids.min() < 0:
            raise ConfigError(f"The id {ids.min()} is negative. Use ids of 0 or more.")
        unique, counts = np.unique(ids, return_counts=True)
        known = np.sort(self._held[self._places(unique)])
        again = known if known.size else unique[counts > 1]
        if again.size:
            raise ConfigError(f"The id {again[0]} is given twice. Remove it, then add it again.")
        self._add(rows.astype(np.float16))
        end = len(self) + ids.size
        if end > self._held.size:
            self._held = np.resize(self._held, max(end, 2 * self._held.size))
        self._held[len(self) : end] = ids
        self._rows = end

    def remove(self, ids: Ids) -> int:
        places = self._places(_as_ids(ids))
        if places.size:
            self._remove(places)
            self._rows -= places.size
        return int(places.size)

    def search(self, query: Vectors, k: int, allowed: Ids | None = None) -> tuple[Ids, Vectors]:
        if k < 1:
            raise ConfigError(f"k={k}: ask for 1 result or more.")
        if query.ndim != 1:
            raise ConfigError(f"The query has shape {query.shape}. Pass one vector (dimensions,).")
        unit = self._unit(query[None])[0]
        among = None if allowed is None else self._places(_as_ids(allowed))
        if len(self) == 0 or (among is not None and among.size == 0):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        places, rows = self._superset(unit, min(k, len(self)), among)
        return _best(unit, self._held[places], rows, k)

    def _unit(self, vectors: Vectors) -> Vectors:
        if vectors.ndim != 2 or vectors.shape[1] != self._dimensions:
            raise ConfigError(
                f"Vectors have shape {vectors.shape}; this index holds {self._dimensions} "
                "dimensions. Pass (count, dimensions) from the embedder the index was made for."
            )
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)  # (N, 1)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            row = int(np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))[0])
            raise ConfigError(f"Vector {row} is zero or not finite. Embed its text again.")
        lengths[np.abs(lengths - 1) < 1e-6] = 1  # unit in fp32 already: keep every bit
        unit: Vectors = (vectors / lengths).astype(np.float32)
        return unit

    def __len__(self) -> int:
        return self._rows

    def _places(self, ids: Ids) -> Ids:
        """Rows of those of `ids` that are there, ascending."""
        if not ids.size:
            return np.empty(0, np.int64)
        held = self._held[: self._rows]
        # New ids are above all that are held: then this is all the work.
        near = np.flatnonzero((held >= ids.min()) & (held <= ids.max()))
        return near[np.isin(held[near], ids)]

    @abstractmethod
    def _add(self, rows: NDArray[np.float16]) -> None:
        """Put rows behind the last one."""

    @abstractmethod
    def _remove(self, places: Ids) -> None:
        """Close the gaps of these rows, ascending, in the same way among the rows and `_held`."""

    @abstractmethod
    def _superset(
        self, unit: Vectors, k: int, among: Ids | None
    ) -> tuple[Ids, NDArray[np.floating]]:
        """Places and stored rows, at least all whose fp32 cosine is within the slack of the k-th.

        `among` are the places that may be found, which may be fewer than k: then all of them.
        """


class TorchIndex(_FP16Index):
    """fp16 rows in one tensor that doubles when full; a removed row is replaced by the last.

    `device` is where the rows live ("cpu", "cuda", ...).
    """

    def __init__(self, dimensions: int, device: str = "cpu") -> None:
        super().__init__(dimensions)
        import torch

        self._torch: Any = torch
        self._vectors = self._empty(_FIRST_ROWS, device)  # (capacity, E) fp16

    def _empty(self, rows: int, device: Any) -> Any:
        return self._torch.empty(rows, self._dimensions, dtype=self._torch.float16, device=device)

    def _add(self, rows: NDArray[np.float16]) -> None:
        start, end = len(self), len(self) + len(rows)
        if end > len(self._vectors):
            grown = self._empty(max(end, 2 * len(self._vectors)), self._vectors.device)
            grown[:start] = self._vectors[:start]
            self._vectors = grown
        self._vectors[start:end] = self._torch.from_numpy(rows)

    def _remove(self, places: Ids) -> None:
        left = len(self) - places.size
        gaps = places[places < left]
        last = np.setdiff1d(np.arange(left, len(self)), places)  # as many as there are gaps
        self._vectors[self._torch.from_numpy(gaps)] = self._taken(last)
        self._held[gaps] = self._held[last]

    def _superset(
        self, unit: Vectors, k: int, among: Ids | None
    ) -> tuple[Ids, NDArray[np.floating]]:
        query = self._torch.from_numpy(unit).to(self._vectors.device)
        places = np.arange(len(self)) if among is None else among
        if places.size > k:
            scores = np.empty(places.size, np.float32)
            for start in range(0, places.size, _BLOCK_ROWS):
                block = slice(start, min(start + _BLOCK_ROWS, places.size))
                rows = self._vectors[block] if among is None else self._taken(places[block])
                scores[block] = (rows.float() @ query).cpu().numpy()
            kth_best = np.partition(scores, places.size - k)[places.size - k]
            places = places[scores >= kth_best - self._slack]
        return places, self._taken(places).cpu().numpy()

    def _taken(self, places: Ids) -> Any:
        return self._vectors[self._torch.from_numpy(places).to(self._vectors.device)]


class FaissIndex(_FP16Index):
    """FAISS `IndexScalarQuantizer(E, QT_fp16, inner product)`; needs `[faiss]`.

    FAISS's own maps of ids take 50 bytes a vector and more, so it is asked for rows.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__(dimensions)
        self._faiss = faiss = _import_faiss()
        self._index = faiss.IndexScalarQuantizer(
            dimensions, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )

    def _add(self, rows: NDArray[np.float16]) -> None:
        # Already rounded to fp16, so that FAISS's own conversion has nothing left to round.
        with _one_thread(self._faiss):
            self._index.add(rows.astype(np.float32))

    def _remove(self, places: Ids) -> None:
        with _one_thread(self._faiss):
            self._index.remove_ids(self._faiss.IDSelectorBatch(places))
        left = len(self) - places.size
        self._held[:left] = np.delete(self._held[: len(self)], places)

    def _superset(
        self, unit: Vectors, k: int, among: Ids | None
    ) -> tuple[Ids, NDArray[np.floating]]:
        query = np.ascontiguousarray(unit[None])
        selector = None if among is None else self._faiss.IDSelectorBatch(among)
        only = None if selector is None else self._faiss.SearchParameters(sel=selector)
        with _one_thread(self._faiss):
            found, scored = self._index.search(query, min(2 * k, len(self)), params=only)[::-1]
            places, scores = found[0], scored[0]  # (2k,); -1 at the end where fewer are allowed
            floor = float(scores[k - 1]) - self._slack
            if places[-1] >= 0 and scores[-1] >= floor and places.size < len(self):
                # Ties reach beyond the end: take everything above the floor.
                places = self._index.range_search(query, floor, params=only)[2]
            else:
                places = places[(places >= 0) & (scores >= floor)]
            if places.size == 0:
                return places, np.empty((0, self._dimensions), np.float32)
            return places, self._index.reconstruct_batch(places)


def make_index(dimensions: int, backend: Backend = "auto", device: str = "cpu") -> VectorIndex:
    """An empty index: FAISS when installed (and rows may stay on the CPU), else torch.

    Raises `ConfigError` for an unknown back end, fewer than 1 dimension, or FAISS asked for and
    not installed.
    """
    if backend == "auto":
        on_cpu = device == "cpu"
        backend = "faiss" if on_cpu and importlib.util.find_spec("faiss") else "torch"
    if backend == "faiss":
        return FaissIndex(dimensions)
    if backend == "torch":
        return TorchIndex(dimensions, device)
    raise ConfigError(f'Unknown index {backend!r}. Use "auto", "faiss" or "torch".')


def rescore(query: Vectors, ids: Ids, vectors: Vectors, k: int) -> tuple[Ids, Vectors]:
    """The k best of some candidates by fp32 cosine, ordered by (-cosine, id).

    `query` is (E,), `ids` (N,), `vectors` (N, E) in the order of `ids`, all of unit length. The
    cosine of a row depends on that row alone (summed in float64, rounded to fp32).
    """
    ids = _as_ids(ids)
    if vectors.shape != (ids.size, query.size):
        raise ConfigError(
            f"{ids.size} candidates and a query of {query.size} dimensions need vectors of shape "
            f"{(ids.size, query.size)}; got {vectors.shape}. Pass one vector an id."
        )
    return _best(query, ids, vectors, k)


def _best(query: Vectors, ids: Ids, vectors: Vectors, k: int) -> tuple[Ids, Vectors]:
    products = vectors.astype(np.float64) * query.astype(np.float64)  # (N, E)
    cosines = np.ascontiguousarray(products).sum(axis=1).astype(np.float32)  # (N,)
    order = np.lexsort((ids, -cosines))[:k]
    return ids[order], cosines[order]


def _as_ids(ids: Ids) -> Ids:
    flat = np.asarray(ids)
    if flat.ndim != 1 or (flat.size and not np.issubdtype(flat.dtype, np.integer)):
        raise ConfigError(f"Ids are {flat.dtype} {flat.shape}. Pass whole numbers in one row.")
    return np.ascontiguousarray(flat, np.int64)


def _import_faiss() -> Any:
    if importlib.util.find_spec("faiss") is None:
        raise ConfigError(
            'The index "faiss" is not installed. Run pip install "memlong-agent[faiss]", or use '
            'index="torch".'
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # SWIG types without __module__
        import faiss
    return faiss


@contextmanager
def _one_thread(faiss: Any) -> Iterator[None]:
    """FAISS on one thread, then as before.

    FAISS shares work among queries and we ask one at a time, so more threads would only spin. The
    setting is torch's too (seen with both wheels: the first OpenMP library loaded serves both), so
    it is put back; other threads of the process have their own.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
