"""Which rows training sees when: dense and easy first, then as at inference.

In: a random generator, a phase and a step. Out: rows. A question gives 3 answer tokens of signal,
an echo (the window says again what was said, or what a memory says) gives 30. So echoes come first,
then questions over more and more memories.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from memlong_agent.training.batches import Encoder, Row
from memlong_agent.training.dialogues import MAX_MEMORIES, MemoryText, Sample, Turn, make_sample
from memlong_agent.training.everyday import everyday_sample
from memlong_agent.training.step import Phase


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of the base phase: shares of rows, and the most memories a row has."""

    until: int  # step
    window_echo: float  # the window says its texts twice
    memory_echo: float  # the window says again what memories say
    memories: int


STAGES = (
    Stage(100, 0.30, 0.60, 1),
    Stage(250, 0.05, 0.55, 2),
    Stage(500, 0.03, 0.30, 3),
    Stage(800, 0.02, 0.15, 5),
)
LATE = Stage(1 << 30, 0.01, 0.05, MAX_MEMORIES)
RETRIEVED = 0.35  # of memory-phase rows: what the real embedder finds
FEW = 0.5  # of the other memory-phase rows: 1 to 3 memories, as many as recall mostly keeps
EVERYDAY = 0.25  # of the other rows: hand-written wordings whose question shares few words
LONG_WINDOW = 0.05  # of memory-phase rows: up to 30 earlier turns stand before the question
LONG_WINDOW_TURNS = 30


class Curriculum:
    """Draws rows; the same generator, phase and step give the same row."""

    def __init__(
        self, encoder: Encoder, prose: Sequence[str], retrieved: Sequence[Sample] = ()
    ) -> None:
        self._encoder, self._prose, self._retrieved = encoder, prose, retrieved

    def row(self, rng: random.Random, phase: Phase, step: int) -> Row:
        """One row of `phase` at `step`."""
        stage = LATE if phase == "memory" else next((s for s in STAGES if step < s.until), LATE)
        chance = rng.random()
        if phase == "memory" and self._retrieved and chance < RETRIEVED:
            return self._encoder.row(rng.choice(self._retrieved), rng)
        if rng.random() < EVERYDAY:
            sample = everyday_sample(rng, split="train")
        else:
            sample = make_sample(rng, split="train", wordings="train", prose=self._prose)
        if phase == "memory" and chance > 1 - LONG_WINDOW:
            return self._encoder.row(self._long(rng, sample), rng)
        if phase == "memory" and rng.random() < FEW:
            sample = _thinned(rng, sample, 1 + int(rng.random() * 3))
        return self._staged(rng, stage, sample)

    def _staged(self, rng: random.Random, stage: Stage, sample: Sample) -> Row:
        chance = rng.random()
        if sample.memories and chance < stage.window_echo:
            turns = _said_again(rng, sample.memories)
            return self._encoder.row(Sample((), (*turns, *turns)), rng, echo=True)
        sample = _thinned(rng, sample, stage.memories)
        if sample.memories and chance < stage.window_echo + stage.memory_echo:
            turns = _said_again(rng, sample.memories)
            return self._encoder.row(Sample(sample.memories, turns), rng, echo=True)
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
    kept = [
        memory for memory in sample.memories if any(answer in _text(memory) for answer in answers)
    ]
    others = [memory for memory in sample.memories if memory not in kept]
    kept += rng.sample(others, max(0, min(len(others), most - len(kept))))
    return Sample(tuple(kept), sample.turns)


def _said_again(rng: random.Random, memories: Sequence[MemoryText]) -> tuple[Turn, ...]:
    """One to three of the memories, word by word, as turns."""
    chosen = rng.sample(memories, min(len(memories), 1 + int(rng.random() * 3)))
    return tuple(Turn(_text(memory), memory.reply, "") for memory in chosen)


def _text(memory: MemoryText) -> str:
    return memory.user or memory.text
