"""From logits to the next token id. Knows nothing of text."""

from __future__ import annotations

import torch

from memlong_agent.config import Sampling
from memlong_agent.engine.constraint import Constraint


class Sampler:
    """Greedy at temperature 0; else temperature, then top-k, then top-p, then one draw.

    Draws run in float32 on the CPU, so that a seed gives the same tokens on every device that
    computes the same logits. Under a constraint, which sees every token that is drawn, only what it
    allows is looked at, also when greedy.
    """

    def __init__(self, sampling: Sampling, constraint: Constraint | None = None) -> None:
        self._sampling = sampling
        self.constraint = constraint
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    @property
    def closed(self) -> bool:
        """Whether the constraint allows nothing more."""
        return self.constraint is not None and self.constraint.closed

    def next_id(self, logits: torch.Tensor, left: int = 1) -> int:
        """The next token id from logits `(V,)`; `left` tokens may still come, this one included."""
        if self.constraint is None:
            return self._drawn(logits)
        return self.constraint.take(self._drawn(self.constraint.mask(logits)), left)

    def _drawn(self, logits: torch.Tensor) -> int:
        settings = self._sampling
        if settings.temperature == 0:
            return int(logits.argmax())
        scores = logits.float().cpu() / settings.temperature
        if 0 < settings.sample_top_k < len(scores):
            worst_kept = scores.topk(settings.sample_top_k).values[-1]
            scores = scores.masked_fill(scores < worst_kept, float("-inf"))
        probabilities = torch.softmax(scores, dim=-1)
        if settings.top_p < 1:
            probabilities = _nucleus(probabilities, settings.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Only the fewest most likely tokens that together reach `top_p`; the first always stays."""
    ordered, places = probabilities.sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter_(0, places, kept)
