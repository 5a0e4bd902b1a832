"""Samples whose memories are what the real embedder finds, so that training sees real distractors.

In: a seed and prose. Out: one-question samples over the `top_k` nearest of a whole life's facts,
with log-priors as recall gives them, by cosine alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from memlong_agent.embedding import Embedder, minilm
from memlong_agent.memory import log_priors, mean_vectors
from memlong_agent.training.dialogues import NOTED, UNKNOWN, MemoryText, Sample, Turn, answer_turn
from memlong_agent.training.everyday import Telling, tellings
from memlong_agent.training.facts import make_facts
from memlong_agent.training.restate import restated

WORLDS, FACTS, EVERYDAY, PROSE, TOP_K = 65, 100, 40, 800, 8


def retrieved_samples(seed: int, again: int, prose: Sequence[str], wanted: int) -> list[Sample]:
    """`wanted` questions or a few more, each over the nearest of its world and of prose.

    At most `WORLDS x (FACTS + EVERYDAY)`, for they take MiniLM some minutes; those of another
    round (`again`) are others.
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
    for world in range(min(WORLDS, -(-wanted // (FACTS + EVERYDAY)))):
        number = seed * 1000 + again * WORLDS + world
        facts = make_facts(FACTS, seed=number, split="train", wordings="train")
        told = [Telling(fact.tell, fact.ask, fact.answer) for fact in facts]
        told += tellings(rng, "train", EVERYDAY, "train")
        rng.shuffle(told)
        samples += _world(told, documents, prose_vectors, embedder)
    return samples


def _world(
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
    vectors = mean_vectors(embedder.embed_texts(parts), [2] * len(memories))
    asked = embedder.embed_texts([one.ask for one in told])  # (N, E)
    scores = asked @ np.concatenate([vectors, prose_vectors]).T  # (N, N + P)
    pool = [*memories, *documents]
    samples = []
    for n, row in enumerate(scores):
        nearest = np.argsort(-row)[:TOP_K]
        if n % 2:  # every other question as recall drops chunks, the rest with all distractors
            floor = max(embedder.threshold, embedder.share_of_best * row.max())
            nearest = nearest[row[nearest] >= floor]
        found = [
            replace(pool[i], log_prior=prior)
            for i, prior in zip(nearest, log_priors(row[nearest].tolist()), strict=True)
        ]
        turn = answer_turn(told[n].ask, said[n], told[n].value)
        if n not in nearest:
            turn = Turn(told[n].ask, UNKNOWN, "")
        samples.append(Sample(tuple(found), (turn,)))
    return samples
