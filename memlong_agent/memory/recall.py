"""Which chunks answer a question: two arms, one order, two floors.

In: an owner's question. Out: chunks with their cosines, best first. It reads no K/V and counts
nothing. The dense arm and the lexical arm propose; relevance, which is cosine, shared words and
whose "I" it is, orders (without vectors, the words alone); what is far from the question or far
behind the best is dropped.

Letters: N chunks, E embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from memlong_agent.embedding import Embedder, points_somewhere
from memlong_agent.errors import ConfigError
from memlong_agent.index import Backend, Ids, Vectors, rescore
from memlong_agent.memory.asking import is_first_person, query_vector
from memlong_agent.memory.indexes import OwnerIndexes
from memlong_agent.storage import LexicalHit, Owner, Storage, StoredChunk

CANDIDATES = 4  # times top_k: enough for fp32 to correct what fp16 ranked
DEPTH = 16  # of the lexical arm, or top_k: deeper ones share too few words to come out on top
# Of the threshold, for the first of the lexical arm on a rare term. Without any for it, what it
# brings back is hardly ever what was asked for.
_CERTAIN = 0.5
_WIDER = 4
# Nats that a chunk of no relevance is behind the best. memlong-tiny, four times 100 facts among a
# novel: 94, 93, 93, 93 right at 0; 97, 100, 98, 96 at 8; 97, 100, 99, 96 at 14.
PRIOR = 14.0
# Of the lexical score, beside the cosine: a rare term is worth about 0.1 of it. The sum puts the
# right chunk first more often than the cosine alone, or than reciprocal-rank fusion of the arms.
_WORDS = 0.01
_MOST_WORDS = 0.3  # cosine that shared words can be worth: a long question shares many
# Cosine that what was said is worth over what was read, for a question in the first person: the "I"
# of a novel is not the one who asks. More would bury what a diary holds among the documents
# (MiniLM; benchmarks/measure_relevance.py).
SAID = 0.05

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Question:
    """What is looked for, and where."""

    owner: Owner
    text: str
    """Of who asks."""
    generated: str = ""
    """The newest of the reply so far: searched for too, but its "I" is not who asks."""
    session: str | None = None
    """Only this session of the owner; None is all of them."""
    turn: str | None = None
    """The running turn, which may recall what it has pending."""
    absent: Callable[[StoredChunk], bool] | None = None
    """Whether a chunk is absent from the prompt; those that are in it are not found again."""

    @property
    def words(self) -> str:
        """All that the lexical arm looks for."""
        return f"{self.text}\n{self.generated}"


@dataclass(frozen=True, slots=True)
class Found:
    """One chunk that answers a question."""

    chunk: StoredChunk
    score: float
    """Cosine; 0.0 without vectors."""
    log_prior: float
    """What it adds to its attention logits: 0 for the most relevant."""


class Finder:
    """Answers questions from one bank. Thread-safe."""

    def __init__(self, storage: Storage, embedder: Embedder, backend: Backend) -> None:
        self._storage = storage
        self._embedder = embedder
        self._indexes = OwnerIndexes(storage, embedder.dimensions, backend)

    def find(self, question: Question, top_k: int) -> list[Found]:
        """At most `top_k` chunks, best first. ConfigError unless top_k is 1 or more."""
        if top_k < 1:
            raise ConfigError(f"top_k={top_k}: ask for 1 chunk or more.")
        if not question.words.strip():
            return []
        vector = None
        if self._embedder.dimensions > 0:
            looked_for = query_vector(self._embedder, question.text, question.generated)  # (E,)
            vector = looked_for if points_somewhere(looked_for) else None
        with self._storage.snapshot():
            return self._ranked(question, top_k, vector)

    def _ranked(self, question: Question, top_k: int, vector: Vectors | None) -> list[Found]:
        seen = _Seen(self._storage, question)
        lexical = self._lexical_arm(question, seen, max(DEPTH, top_k))
        judge = _Judge(self._embedder, question, lexical, seen, top_k)
        if vector is None:
            return judge.found_by_words()
        search, want = self._dense_arm(question, vector), CANDIDATES * top_k
        near = search(want)
        judge.weigh(self._cosines(question.owner, vector, [*near, *judge.words]))
        if len(near) == want and not judge.is_settled(near[-1]):
            found = widened(lambda n: near if n == want else search(n), seen.pks, want)
            if found != near:  # some may not be found, and others take their place
                judge.weigh(self._cosines(question.owner, vector, [*found, *judge.words]))
        return judge.found()

    def forget(self, owner: Owner) -> None:
        """Drop what is kept of an owner who is erased."""
        self._indexes.forget(owner)

    def _lexical_arm(self, question: Question, seen: _Seen, want: int) -> list[LexicalHit]:
        def ask(depth: int) -> list[LexicalHit]:
            return self._storage.search(
                question.owner,
                question.words,
                turn=question.turn,
                session=question.session,
                depth=depth,
            )

        return widened(ask, seen.hits, want)

    def _dense_arm(self, question: Question, vector: Vectors) -> Callable[[int], list[int]]:
        """The first so many keys by the cosine of fp16 rows, whoever may find them."""
        allowed: Ids | None = None
        if question.session is not None:
            allowed = self._storage.recallable_pks(
                question.owner, turn=question.turn, session=question.session
            )
        index = self._indexes.of(question.owner)
        return lambda depth: index.search(vector, depth, allowed)

    def _cosines(self, owner: Owner, vector: Vectors, pks: Sequence[int]) -> dict[int, float]:
        """fp32 cosines by key, of the chunks that have a vector."""
        ids, vectors = self._storage.vectors_of(owner, pks)  # (N,), (N, E)
        if not ids.size:
            return {}
        ids, scores = rescore(vector, ids, vectors, ids.size)
        return dict(zip(ids.tolist(), scores.tolist(), strict=True))


def log_priors(relevances: Sequence[float]) -> list[float]:
    """What each of the chunks recalled together adds to its attention logits.

    0 for the best, down to -14 nats for one of no relevance. So the retriever's judgement is the
    prior of the decoder's own, as p(z|x) is in RAG (Lewis et al. 2020).
    """
    best = max(relevances, default=0.0)
    if best <= 0:
        return [0.0] * len(relevances)
    return [PRIOR * (max(relevance, 0.0) / best - 1) for relevance in relevances]


class _Judge:
    """Relevance for one question, of what is near it and of what shares its words.

    Chunks are looked up from the most promising down, until nothing that follows can come out on
    top: most candidates of a question never are.
    """

    def __init__(
        self,
        embedder: Embedder,
        question: Question,
        lexical: Sequence[LexicalHit],
        seen: _Seen,
        top_k: int,
    ) -> None:
        self.words = {hit.pk: min(_WORDS * hit.score, _MOST_WORDS) for hit in lexical}
        self._certain = {hit.pk for hit in lexical[:1] if hit.rare}
        self._said = SAID if is_first_person(question.text) else 0.0
        self._embedder, self._seen, self._top_k = embedder, seen, top_k
        self._cosines: Mapping[int, float] = {}
        self._relevance: dict[int, float] = {}

    def weigh(self, cosines: Mapping[int, float]) -> None:
        """Judge these, and what shares words: without a cosine as if at 90 degrees."""
        self._cosines = {**dict.fromkeys(self.words, 0.0), **cosines}
        self._relevance = {}
        promise = self._promise()
        order = sorted(promise, key=lambda pk: (-promise[pk], pk))
        for start in range(0, len(order), self._top_k):
            part = order[start : start + self._top_k]
            if self._is_settled(promise[part[0]]):
                break
            for pk in self._seen.pks(part):
                self._relevance[pk] = promise[pk] + self._said * self._seen[pk].said

    def is_settled(self, last: int) -> bool:
        """Whether no chunk with a lower cosine than `last` has can come out on top."""
        # No cosine: the index knew it before this snapshot did.
        return self._is_settled(self._cosines.get(last, 1.0))

    def found(self) -> list[Found]:
        """What answers best, most relevant first."""
        return _found(self._best(), self._seen, self._cosines, self._relevance)

    def found_by_words(self) -> list[Found]:
        """The same where there are no vectors."""
        best, nothing = list(self.words)[: self._top_k], dict.fromkeys(self.words, 0.0)
        return _found(best, self._seen, nothing, self.words)

    def _promise(self) -> dict[int, float]:
        """Relevance before anything is looked up, of what is not too far from the question."""
        threshold = self._embedder.threshold
        return {
            pk: cosine + self.words.get(pk, 0.0)
            for pk, cosine in self._cosines.items()
            if cosine >= threshold * (_CERTAIN if pk in self._certain else 1)
        }

    def _is_settled(self, promise: float) -> bool:
        """Whether the best stay the best, if what follows promises no more."""
        best, most = self._best(), promise + self._said
        full = len(best) == self._top_k and self._relevance[best[-1]] >= most
        return full or most < self._floor()

    def _best(self) -> list[int]:
        """Keys, best first, without those that are far behind.

        They rarely answer too, and what does not answer draws attention from what does.
        """
        floor = self._floor()
        near_best = [pk for pk, worth in self._relevance.items() if worth >= floor]
        return sorted(near_best, key=lambda pk: (-self._relevance[pk], pk))[: self._top_k]

    def _floor(self) -> float:
        return self._embedder.share_of_best * max(self._relevance.values(), default=0.0)


def _found(
    pks: Sequence[int], seen: _Seen, cosines: Mapping[int, float], relevance: Mapping[int, float]
) -> list[Found]:
    priors = log_priors([relevance[pk] for pk in pks])
    return [Found(seen[pk], cosines[pk], prior) for pk, prior in zip(pks, priors, strict=True)]


class _Seen:
    """Chunks looked up for one question, and which of them it may find."""

    def __init__(self, storage: Storage, question: Question) -> None:
        self._storage = storage
        self._question = question
        self._chunks: dict[int, StoredChunk | None] = {}

    def __getitem__(self, pk: int) -> StoredChunk:
        chunk = self._chunks[pk]
        if chunk is None:
            raise KeyError(pk)
        return chunk

    def hits(self, ranked: Sequence[LexicalHit]) -> list[LexicalHit]:
        """Those of a ranking that the question may find, in order."""
        self._admit(hit.chunk for hit in ranked if hit.pk not in self._chunks)
        return [hit for hit in ranked if self._chunks[hit.pk] is not None]

    def pks(self, ranked: Sequence[int]) -> list[int]:
        """The same for keys, whose chunks are looked up."""
        new = [pk for pk in ranked if pk not in self._chunks]
        if new:
            self._chunks.update(dict.fromkeys(new))
            asked = self._question
            self._admit(self._storage.recallable(asked.owner, new, turn=asked.turn))
        return [pk for pk in ranked if self._chunks[pk] is not None]

    def _admit(self, chunks: Iterable[StoredChunk]) -> None:
        absent = self._question.absent
        for chunk in chunks:
            self._chunks[chunk.pk] = chunk if absent is None or absent(chunk) else None


def widened(
    ask: Callable[[int], Sequence[T]], keep: Callable[[Sequence[T]], list[U]], want: int
) -> list[U]:
    """The first `want` of a ranking that pass a filter, asking deeper until there are as many.

    `ask(depth)` gives the first `depth` of the ranking, fewer when that is all there is.
    """
    depth = want
    while True:
        ranked = ask(depth)
        kept = keep(ranked)
        if len(kept) >= want or len(ranked) < depth:
            return kept[:want]
        depth *= _WIDER
