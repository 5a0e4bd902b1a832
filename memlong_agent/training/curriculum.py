"""Which rows training sees when: few memories first, then as many as at inference.

In: a random generator, a phase and a step. Out: rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from memlong_agent.training.batches import Encoder, Row
from memlong_agent.training.dialogues import MAX_MEMORIES, MemoryText, Sample, Turn, make_sample
from memlong_agent.training.everyday import everyday_sample
from memlong_agent.training.respell import respelled, spelling_pieces
from memlong_agent.training.settings import RESPELLED, RETRIEVED, Phase, of_round


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of the base phase: the most memories a row has, the share of long windows."""

    until: int  # step
    memories: int
    long_window: float  # share of rows: earlier turns stand before the sample's
    earlier_turns: int  # the most of them


STAGES = (
    Stage(400, 1, 0.0, 0),
    Stage(800, 2, 0.0, 0),
    Stage(1000, 4, 0.02, 8),
    Stage(1400, 4, 0.08, 16),
)
LATE = Stage(1 << 30, MAX_MEMORIES, 0.08, 24)  # 24 turns fill a live window of 1,024 tokens
MEMORY = Stage(1 << 30, MAX_MEMORIES, 0.06, 24)  # the memory phase
FEW = 0.5  # of the other rows: 1 to 3 memories, as many as recall mostly keeps
EVERYDAY = 0.35  # of the other rows: hand-written wordings whose question shares few words


class Curriculum:
    """Draws rows; the same generator, phase and step give the same row."""

    def __init__(
        self,
        encoder: Encoder,
        prose: Sequence[str],
        again: int = 0,
        retrieved: Sequence[Sample] = (),
    ) -> None:
        self._encoder, self._prose, self._retrieved = encoder, prose, retrieved
        self._share = of_round(RETRIEVED, again) if retrieved else 0.0
        self._respelled = of_round(RESPELLED, again)
        self._pieces = spelling_pieces(encoder.tokenizer) if self._respelled else ()

    def row(self, rng: random.Random, phase: Phase, step: int) -> Row:
        """One row of `phase` at `step`."""
        sample = self._sample(rng, phase, step)
        if self._respelled and rng.random() < self._respelled:
            sample = respelled(rng, sample, self._pieces)
        return self._encoder.row(sample, rng)

    def _sample(self, rng: random.Random, phase: Phase, step: int) -> Sample:
        if rng.random() < self._share:
            return rng.choice(self._retrieved)
        stage = MEMORY if phase == "memory" else next((s for s in STAGES if step < s.until), LATE)
        if rng.random() < EVERYDAY:
            sample = everyday_sample(rng, split="train")
        else:
            sample = make_sample(rng, split="train", wordings="train", prose=self._prose)
        most = 1 + int(rng.random() * 3) if rng.random() < FEW else stage.memories
        sample = _thinned(rng, sample, min(most, stage.memories))
        if rng.random() < stage.long_window:
            sample = self._long(rng, sample, stage.earlier_turns)
        return sample

    def _long(self, rng: random.Random, sample: Sample, most: int) -> Sample:
        """The sample after `most` or fewer turns of other conversations, as in a long session."""
        earlier: list[Turn] = []
        wanted = 4 + int(rng.random() * (most - 3))
        while len(earlier) < wanted:
            if rng.random() < EVERYDAY:
                other = everyday_sample(rng, split="train")
                earlier += (turn for turn in other.turns if not turn.answer)
            else:
                name = "window" if rng.random() < 0.3 else "plain"
                earlier += make_sample(
                    rng, split="train", wordings="train", prose=self._prose, name=name
                ).turns
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


def _text(memory: MemoryText) -> str:
    return memory.user or memory.text
