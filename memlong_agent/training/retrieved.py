"""Samples whose memories are what the real embedder finds, so that training sees real distractors.

In: a seed and prose. Out: samples of one question, or of a few tellings, over the `top_k` nearest
of a whole life's facts, with log-priors as recall gives them, by cosine alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from memlong_agent.embedding import Embedder, minilm
from memlong_agent.memory import log_priors, mean_vectors
from memlong_agent.training.dialogues import NOTED, UNKNOWN, MemoryText, Sample, Turn, answer_turn
from memlong_agent.training.everyday import Telling, tellings
from memlong_agent.training.facts import make_facts
from memlong_agent.training.restate import restated

WORLDS, FACTS, EVERYDAY, PROSE, TOP_K = 65, 100, 40, 800, 8
_TOLD_EVERY = 2  # of the facts, one is also told over what is recalled for it
_EARLIER = 5  # the most tellings that stand before it in its window


def retrieved_samples(seed: int, again: int, prose: Sequence[str], wanted: int) -> list[Sample]:
    """`wanted` samples or a few more, each over the nearest of its world and of prose.

    At most those of `WORLDS` worlds, for they take MiniLM some minutes; those of another round
    (`again`) are others. Each world has its facts' questions, and tellings of every other fact.
    A question whose own fact is not among them keeps it out: the reply is then an abstention.
    """
    embedder = minilm()
    rng = random.Random(f"{seed}-{again}-retrieved")
    documents = [
        MemoryText("document", "", "", text, n + 1)
        for n, text in enumerate(rng.sample(list(prose), PROSE))
    ]
    prose_vectors = embedder.embed_texts([memory.text for memory in documents])  # (PROSE, E)
    samples = []
    of_a_world = FACTS + EVERYDAY + -(-(FACTS + EVERYDAY) // _TOLD_EVERY)
    for world in range(min(WORLDS, -(-wanted // of_a_world))):
        number = seed * 1000 + again * WORLDS + world
        facts = make_facts(FACTS, seed=number, split="train", wordings="train")
        told = [Telling(fact.tell, fact.ask, fact.answer) for fact in facts]
        told += tellings(rng, "train", EVERYDAY, "train")
        rng.shuffle(told)
        samples += _world(rng, told, documents, prose_vectors, embedder)
    return samples


def _world(
    rng: random.Random,
    told: Sequence[Telling],  # N
    documents: Sequence[MemoryText],  # P
    prose_vectors: np.ndarray,  # (P, E)
    embedder: Embedder,
) -> list[Sample]:
    said = [restated(one.tell, one.value) for one in told]
    memories = [
        MemoryText("exchange", one.tell, NOTED + back, "", len(documents) + len(told) - n)
        for n, (one, back) in enumerate(zip(told, said, strict=True))
    ]
    parts = [part for memory in memories for part in (memory.user, memory.reply)]
    part_vectors = embedder.embed_texts(parts)  # (2 N, E)
    vectors = mean_vectors(part_vectors, [2] * len(memories))  # (N, E)
    pool = [*memories, *documents]
    pool_vectors = np.concatenate([vectors, prose_vectors])  # (N + P, E)
    asked = embedder.embed_texts([one.ask for one in told]) @ pool_vectors.T  # (N, N + P)
    heard = part_vectors[::2] @ pool_vectors.T  # (N, N + P), of what the user said
    return [
        *_questions(told, said, pool, asked, embedder),
        *_tellings(rng, told, said, pool, heard, embedder),
    ]


def _questions(
    told: Sequence[Telling],
    said: Sequence[str],
    pool: Sequence[MemoryText],
    asked: np.ndarray,
    embedder: Embedder,
) -> Iterator[Sample]:
    """Every fact asked; every other question over as many as there are, the rest as recalled."""
    for n, row in enumerate(asked):
        nearest = _nearest(row, embedder, all_of_them=n % 2 == 0)
        turn = answer_turn(told[n].ask, said[n], told[n].value)
        if n not in nearest:
            turn = Turn(told[n].ask, UNKNOWN, "")
        yield Sample(_recalled(pool, row, nearest), (turn,))


def _tellings(
    rng: random.Random,
    told: Sequence[Telling],
    said: Sequence[str],
    pool: Sequence[MemoryText],
    heard: np.ndarray,
    embedder: Embedder,
) -> Iterator[Sample]:
    """Every other fact told, after a few that were told before it."""
    turns = [  # the value is marked as an answer is, so that it weighs more and is respelled
        Turn(one.tell, NOTED + back, one.value) for one, back in zip(told, said, strict=True)
    ]
    for n in range(0, len(told), _TOLD_EVERY):
        window = range(max(0, n - rng.randrange(_EARLIER + 1)), n + 1)
        row = heard[n]
        row[window] = -1.0  # what is in the window is not recalled
        nearest = _nearest(row, embedder, all_of_them=False)
        yield Sample(_recalled(pool, row, nearest), tuple(turns[i] for i in window))


def _nearest(row: np.ndarray, embedder: Embedder, *, all_of_them: bool) -> np.ndarray:
    """The `TOP_K` best of a row of cosines; unless all of them are wanted, as recall drops them."""
    nearest = np.argsort(-row)[:TOP_K]
    floor = max(embedder.threshold, embedder.share_of_best * row.max())
    return nearest if all_of_them else nearest[row[nearest] >= floor]


def _recalled(
    pool: Sequence[MemoryText], row: np.ndarray, nearest: np.ndarray
) -> tuple[MemoryText, ...]:
    priors = log_priors(row[nearest].tolist())
    return tuple(
        replace(pool[i], log_prior=prior) for i, prior in zip(nearest, priors, strict=True)
    )
