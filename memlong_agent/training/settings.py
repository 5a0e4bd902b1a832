"""What a training run can be told, and what changes from round to round.

In: options. Out: settings, and the share, weight or rate of a round. Knows no data and no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from memlong_agent.config import Frozen

Phase = Literal["base", "memory"]
PHASES: tuple[Phase, ...] = ("base", "memory")

# By round; a round after the last that is listed is like it.
LENGTHS = (1.0, 0.5, 0.5, 0.5, 0.5, 0.2)  # of the first round's steps
RATES = (1.0, 0.5, 0.5, 0.5, 0.2, 0.1)  # of the first round's
RETRIEVED = (0.35, 0.35, 0.6, 0.6, 0.85)  # of rows: what the real embedder finds
RESPELLED = (0.0, 0.0, 0.0, 0.4, 0.4)  # of rows: answers made of any piece of the vocabulary
# Loss weight of what the user says, a reply has 1. It teaches the language, but cannot be foreseen:
# at 0.1 it is seven tenths of a trained model's loss, and its noise moves what reads the memory.
USER_WEIGHTS = (0.1, 0.1, 0.1, 0.1, 0.0)
# From this round on its published weights are a mean of the last ones and of those at these shares
# of its base steps (stochastic weight averaging, Izmailov et al. 2018): it misreads less than any.
FIRST_AVERAGED = 4
AVERAGED = (0.15, 0.5)


def of_round(by_round: Sequence[float], again: int) -> float:
    """The value of round `again`, counted from 0."""
    return by_round[min(again, len(by_round) - 1)]


class TrainSettings(Frozen):
    """What `memlong train` needs to build memlong-tiny again; defaults are those of the release."""

    seed: int = 0
    hidden_size: int = Field(256, ge=32)
    layers: int = Field(6, ge=2)
    heads: int = Field(4, ge=1)
    feed_forward: int = Field(704, ge=32)
    batch_rows: int = Field(32, ge=1)
    base_steps: int = Field(4000, ge=0)
    memory_steps: int = Field(600, ge=0)
    rounds: int = Field(6, ge=1)
    """Times that both phases are run; those after the first have fewer steps, at lower rates."""
    base_rate: float = Field(2e-3, gt=0)
    memory_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(150, ge=1)
    weight_decay: float = Field(0.05, ge=0)
    check_every: int = Field(100, ge=1)
    """Steps between a dev measurement with a checkpoint."""
    chunk_tokens: int = Field(128, ge=32)

    def steps(self, phase: Phase, again: int) -> int:
        """Steps of a phase in its round `again`, counted from 0."""
        steps = self.base_steps if phase == "base" else self.memory_steps
        return int(steps * of_round(LENGTHS, again))

    def rate(self, phase: Phase, again: int) -> float:
        """The highest learning rate of a phase in its round `again`."""
        return (self.base_rate if phase == "base" else self.memory_rate) * of_round(RATES, again)

    def is_averaged(self, phase: Phase, again: int, step: int) -> bool:
        """Whether the weights after `step` steps of a phase are part of the published mean."""
        if phase != "base" or again < FIRST_AVERAGED:
            return False
        return step in {round(share * self.steps(phase, again)) for share in AVERAGED}
