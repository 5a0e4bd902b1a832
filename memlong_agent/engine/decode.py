"""One reply in the making: prefill the live window, decode token by token, rebuild when full.

In: token ids, recalled memory, a sampler. Out: token ids, one by one. The live window is rebuilt,
not rolled: when it is full the cache is dropped, and the prefix with the newest half of the rest is
prefilled again under the same memory, so that nothing dropped leaves a trace in the cache.
Refuses to know text, sessions and the bank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from memlong_agent.attention import RecalledMemory
from memlong_agent.engine.sampling import Sampler
from memlong_agent.errors import ContextOverflowError
from memlong_agent.model import MemoryModel

Refresh = Callable[[Sequence[int]], RecalledMemory | None]
"""Called with the ids generated so far before a window is prefilled anew; gives its memory."""


@dataclass(slots=True)
class LiveWindow:
    """Token ids that the model sees now: a prefix that stays and a rest that shrinks by halves."""

    prefix: list[int]  # BOS and system prompt
    rest: list[int]
    limit: int  # tokens
    dropped: int = 0  # tokens that left since this window was made

    def __post_init__(self) -> None:
        if len(self.prefix) > self.limit // 2:
            raise ContextOverflowError(
                f"The system prompt, with its tools, takes {len(self.prefix)} of {self.limit} "
                "window tokens; at most half may be taken. Shorten it or raise window_tokens."
            )
        self.shrink()

    @property
    def ids(self) -> list[int]:
        return [*self.prefix, *self.rest]

    @property
    def full(self) -> bool:
        """Whether another token would pass the limit."""
        return len(self.prefix) + len(self.rest) >= self.limit

    def shrink(self) -> None:
        """Keep the newest half of what fits beside the prefix, if the window is full."""
        if self.full:
            keep = (self.limit - len(self.prefix)) // 2
            self.dropped += max(0, len(self.rest) - keep)
            self.rest = self.rest[-keep:]


@dataclass(slots=True)
class Decoder:
    """Iterate to get token ids; a stop id ends the reply and is not given out, and so does a
    constraint after which nothing more can come.

    `refresh` is asked for the memory after every rebuild, and after each `refresh_every` generated
    tokens (0: never); when it answers with another memory the whole window is prefilled under it.
    """

    model: MemoryModel
    start: int  # position of the window's first token
    window: LiveWindow
    memory: RecalledMemory | None
    sampler: Sampler
    stop_ids: frozenset[int]
    max_tokens: int
    refresh: Refresh
    refresh_every: int = 0
    generated: list[int] = field(default_factory=list)
    logits: torch.Tensor | None = None  # (V,) that chose the last token
    chunk_mass: list[float] = field(default_factory=list)  # of the first prefill's last token
    stopped: bool = False  # by a stop id, not by max_tokens
    _mass: list[torch.Tensor] = field(default_factory=list)
    _cache: object = None

    def __iter__(self) -> Iterator[int]:
        self._prefill()
        if self.memory is not None and self.memory.chunk_mass:
            self.chunk_mass = self.memory.last_token_chunk_mass()[0].tolist()
            self.memory.trace_chunks = False
        while len(self.generated) < self.max_tokens:
            assert self.logits is not None  # set by every forward pass
            token = self.sampler.next_id(self.logits, self.max_tokens - len(self.generated))
            if token in self.stop_ids:
                self.stopped = True
                return
            self.generated.append(token)
            self.window.rest.append(token)
            yield token
            if self.sampler.closed:
                self.stopped = True
                return
            if len(self.generated) < self.max_tokens:
                self._advance(token)

    @property
    def attention_mass(self) -> float:
        """Mean share of attention on memory over the prompt's last token and the reply, 0..1."""
        return float(torch.stack(self._mass).mean()) if self._mass else 0.0

    def _advance(self, token: int) -> None:
        due = self.refresh_every and len(self.generated) % self.refresh_every == 0
        full = self.window.full
        if full:
            self.window.shrink()
        memory = self.refresh(self.generated) if full or due else self.memory
        if full or memory is not self.memory:
            self.memory = memory
            self._prefill()
        else:
            self._forward([token])

    def _prefill(self) -> None:
        self._cache = self.model.new_cache()
        self._forward(self.window.ids)

    @torch.no_grad()
    def _forward(self, ids: Sequence[int]) -> None:
        at = self.start + len(self.window.ids) - len(ids)
        tensor = torch.tensor([ids], device=self.model.device)  # (1, T)
        logits = self.model.forward(
            tensor, at, memory=self.memory, cache=self._cache, last_only=True
        )
        self.logits = logits[0, -1]
        if self.memory is not None and self.memory.mass:
            self._mass.append(self.memory.last_token_mass()[0])
