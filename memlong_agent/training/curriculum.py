"""Which rows training sees when: easy and dense first, then as at inference.

In: a random generator, a phase and a step. Out: rows. Copying is a circuit that forms suddenly and
late: after 600 steps of questions alone, nothing had been copied, since a question gives 3 tokens
of signal for 250 tokens of memory. An echo row (the window says again what a memory says) gives 30.
So echoes come first, with few memories, and both shares move to those of use.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from memlong_agent.training.batches import Encoder, Row
from memlong_agent.training.dialogues import MAX_MEMORIES, MemoryText, Sample, Turn, make_sample
from memlong_agent.training.step import Phase

EASY_STEPS = 1000  # of the base phase, until shares and memories are those of use
ECHO_FIRST, ECHO_LAST = 0.6, 0.08  # share of echo rows at step 0 and from EASY_STEPS on
WINDOW_ECHO = 0.3  # of the echo rows: the text stands in the window twice, and in no memory
RETRIEVED = 0.35  # of memory-phase rows: what the real embedder finds
LONG_WINDOW = 0.10  # of memory-phase rows: up to 40 earlier turns stand before the question
LONG_WINDOW_TURNS = 40


class Curriculum:
    """Draws rows; the same generator, phase and step give the same row."""

    def __init__(self, encoder: Encoder, prose: Sequence[str], retrieved: Sequence[Sample] = ()) -> None:
        self._encoder, self._prose, self._retrieved = encoder, prose, retrieved

    def row(self, rng: random.Random, phase: Phase, step: int) -> Row:
        """One row of `phase` at `step`."""
        hard = min(1.0, step / EASY_STEPS) if phase == "base" else 1.0
        chance = rng.random()
        if phase == "memory" and self._retrieved and chance < RETRIEVED:
            return self._encoder.row(rng.choice(self._retrieved), rng)
        sample = make_sample(rng, split="train", wordings="train", prose=self._prose)
        if phase == "memory" and chance > 1 - LONG_WINDOW:
            return self._encoder.row(self._long(rng, sample), rng)
        sample = _thinned(rng, sample, 1 + round(hard * (MAX_MEMORIES - 1)))
        if sample.memories and rng.random() < ECHO_FIRST + hard * (ECHO_LAST - ECHO_FIRST):
            return self._encoder.row(_echo(rng, sample), rng, echo=True)
        return self._encoder.row(sample, rng)

    def _long(self, rng: random.Random, sample: Sample) -> Sample:
        """The sample after many turns of other conversations, as in a long session."""
        earlier: list[Turn] = []
        wanted = 5 + int(rng.random() * (LONG_WINDOW_TURNS - 5))
        while len(earlier) < wanted:
            name = "window" if rng.random() < 0.3 else "plain"
            other = make_sample(rng, split="train", wordings="train", prose=self._prose, name=name)
            earlier += other.turns
        return Sample(sample.memories, (*earlier[:wanted], *sample.turns))


def _thinned(rng: random.Random, sample: Sample, most: int) -> Sample:
    """At most `most` memories, those that hold an answer first."""
    if len(sample.memories) <= most:
        return sample
    answers = [turn.answer for turn in sample.turns if turn.answer]
    kept = [memory for memory in sample.memories if any(answer in _text(memory) for answer in answers)]
    others = [memory for memory in sample.memories if memory not in kept]
    kept += rng.sample(others, max(0, min(len(others), most - len(kept))))
    return Sample(tuple(kept), sample.turns)


def _echo(rng: random.Random, sample: Sample) -> Sample:
    """One to three of the memories said again, word by word."""
    chosen = rng.sample(sample.memories, min(len(sample.memories), 1 + int(rng.random() * 3)))
    turns = tuple(Turn(_text(memory), memory.reply, "") for memory in chosen)
    if rng.random() < WINDOW_ECHO:
        return Sample((), (*turns, *turns))
    return Sample(sample.memories, turns)


def _text(memory: MemoryText) -> str:
    return memory.user or memory.text
