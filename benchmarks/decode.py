"""What memory costs while a reply is decoded: our decoder beside a bare loop over the stock model.

Both hold 1,024 tokens in a `DynamicCache`, take the likeliest token each step, and take their steps
in turn, so that their caches grow alike. Ours attends to 2,048 recalled tokens in 4 of 16 layers as
well and keeps the books of the engine (window, attention mass); the stock loop keeps none, which
is less than `generate` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from benchmarks.models import LLAMA_221M, Shape, Twins, random_ids, random_memory, twins
from benchmarks.rows import Bar, Options, Row, Spread, row
from benchmarks.timing import interleaved
from memlong_agent.attention import RecalledMemory
from memlong_agent.config import Sampling
from memlong_agent.engine import Decoder, LiveWindow, Sampler
from memlong_agent.model import Placement

BAR = Bar("<=", 1.15)
_GREEDY: dict[str, Any] = {"temperature": 0.0}
_WARMUP = 4  # pairs of tokens; the first holds the prefill


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of one run, in tokens, and how often it is repeated."""

    steps: int
    prefills: int
    shape: Shape = LLAMA_221M
    window_tokens: int = 1024
    recalled_tokens: int = 2048
    prompt_tokens: int = 512

    @property
    def placement(self) -> Placement:
        return Placement("zero", self.recalled_tokens, self.window_tokens)


def measure(options: Options) -> list[Row]:
    """Decode, against its bar, and prefill, for information."""
    plan = Plan(steps=40, prefills=3) if options.quick else Plan(steps=200, prefills=9)
    pair = twins(options.device, plan.shape)
    return [decode(pair, plan), prefill(pair, plan)]


def decode(pair: Twins, plan: Plan) -> Row:
    """Our seconds per token over the stock model's, token by token."""
    ids = random_ids(pair.ours, plan.window_tokens)
    ours = iter(_decoder(pair, plan, ids))
    theirs = _stock_tokens(pair.stock, ids)
    taken = interleaved(
        lambda: next(ours), lambda: next(theirs), plan.steps, warmup=_WARMUP, settle=pair.settle
    )
    mine_ms = 1e3 * Spread.of(taken.ours_s).middle
    stock_ms = 1e3 * Spread.of(taken.theirs_s).middle
    note = (
        f"{mine_ms:.1f} against {stock_ms:.1f} ms/token; {plan.recalled_tokens:,} recalled tokens "
        f"in {len(pair.ours.layout.retrieval_layers)} of {plan.shape.layers} layers, "
        f"{plan.window_tokens:,} in the window; {pair.describe()}"
    )
    return row("decode", Spread.of(taken.slowdowns), "x stock", BAR, note)


def prefill(pair: Twins, plan: Plan) -> Row:
    """Our seconds over the stock model's for a prompt that starts an empty cache."""
    ids = torch.tensor([random_ids(pair.ours, plan.prompt_tokens)], device=pair.ours.device)
    memory = random_memory(pair.ours, plan.placement)
    taken = interleaved(
        lambda: _our_prefill(pair, ids, memory, plan.placement.start),
        lambda: _stock_forward(pair.stock, ids, DynamicCache(config=pair.stock.config)),
        plan.prefills,
        warmup=1,
        settle=pair.settle,
    )
    mine_ms = 1e3 * Spread.of(taken.ours_s).middle
    stock_ms = 1e3 * Spread.of(taken.theirs_s).middle
    note = (
        f"{mine_ms:.0f} against {stock_ms:.0f} ms for {plan.prompt_tokens} tokens with and without "
        f"{plan.recalled_tokens:,} recalled ones"
    )
    return row("prefill", Spread.of(taken.slowdowns), "x stock", None, note)


def _decoder(pair: Twins, plan: Plan, ids: Sequence[int]) -> Decoder:
    room = plan.steps + _WARMUP + 1
    memory = random_memory(pair.ours, plan.placement)
    return Decoder(
        model=pair.ours,
        start=plan.placement.start,
        window=LiveWindow(list(ids[:1]), list(ids[1:]), plan.window_tokens + room),
        memory=memory,
        sampler=Sampler(Sampling(**_GREEDY)),
        stop_ids=frozenset(),
        max_tokens=room,
        refresh=lambda generated: memory,
    )


@torch.no_grad()
def _stock_tokens(lm: PreTrainedModel, ids: Sequence[int]) -> Iterator[int]:
    cache = DynamicCache(config=lm.config)
    token = int(_stock_forward(lm, torch.tensor([ids], device=lm.device), cache).argmax())
    while True:
        yield token
        logits = _stock_forward(lm, torch.tensor([[token]], device=lm.device), cache)  # (V,)
        token = int(logits.argmax())


@torch.no_grad()
def _stock_forward(lm: PreTrainedModel, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """Logits (V,) after `ids` (1, T)."""
    result = lm(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits: torch.Tensor = result.logits[0, -1]
    return logits


@torch.no_grad()
def _our_prefill(pair: Twins, ids: torch.Tensor, memory: RecalledMemory, start: int) -> None:
    cache = pair.ours.new_cache()
    pair.ours.forward(ids, start, memory=memory, cache=cache, last_only=True)
