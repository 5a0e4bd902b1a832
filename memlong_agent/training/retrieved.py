"""Samples whose memories are what the real embedder finds, so that training sees real distractors.

In: a seed and prose. Out: one-question samples over the `top_k` nearest of a whole life's facts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from memlong_agent.embedding import minilm
from memlong_agent.training.dialogues import NOTED, UNKNOWN, MemoryText, Sample, Turn, answer_turn
from memlong_agent.training.facts import Fact, make_facts

WORLDS, FACTS, PROSE, TOP_K = 24, 80, 400, 8


def retrieved_samples(seed: int, prose: Sequence[str]) -> list[Sample]:
    """`WORLDS x FACTS` questions, each over the `TOP_K` nearest of its world and of prose.

    A question whose own fact is not among them keeps it out: the reply is then an abstention.
    """
    embedder = minilm()
    documents = [
        MemoryText("document", "", "", text, n + 1)
        for n, text in enumerate(random.Random(seed).sample(list(prose), PROSE))
    ]
    prose_vectors = embedder.embed_texts([memory.text for memory in documents])  # (PROSE, E)
    samples = []
    for world in range(WORLDS):
        facts = make_facts(FACTS, seed=seed * 1000 + world, split="train", wordings="train")
        told = [
            MemoryText("exchange", fact.tell, NOTED + fact.restated, "", PROSE + len(facts) - n)
            for n, fact in enumerate(facts)
        ]
        vectors = embedder.embed_texts(
            [f"User: {memory.user}\nAssistant: {memory.reply}" for memory in told]
        )
        asked = embedder.embed_texts([fact.ask for fact in facts])  # (FACTS, E)
        scores = asked @ np.concatenate([vectors, prose_vectors]).T  # (FACTS, FACTS + PROSE)
        pool = [*told, *documents]
        for n, (fact, row) in enumerate(zip(facts, scores, strict=True)):
            nearest = np.argsort(-row)[:TOP_K]
            if n % 2:  # every other question as recall drops chunks, the rest with all distractors
                floor = max(embedder.threshold, embedder.share_of_best * row.max())
                nearest = nearest[row[nearest] >= floor]
            samples.append(_sample(fact, [pool[i] for i in nearest], found=n in nearest))
    return samples


def _sample(fact: Fact, memories: list[MemoryText], *, found: bool) -> Sample:
    turn = (
        answer_turn(fact.ask, fact.restated, fact.answer) if found else Turn(fact.ask, UNKNOWN, "")
    )
    return Sample(tuple(memories), (turn,))
