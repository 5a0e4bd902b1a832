"""What stopping early saves when text is encoded: our encoder beside a full forward pass.

Both read the same batch; the stock model computes its head on the last token only. In theory the
speed-up is L/m: m full layers instead of L. The share of it that arrives pays for the projections
of the memory layer and for handing every chunk its own K/V.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.models import LLAMA_221M, Shape, Twins, random_ids, twins
from benchmarks.rows import Bar, Options, Row, Spread, row
from benchmarks.timing import interleaved

BAR = Bar(">=", 0.9)


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of one run, and how often it is repeated."""

    rounds: int
    warmup: int
    shape: Shape = LLAMA_221M
    chunks: int = 16
    chunk_tokens: int = 256


def measure(options: Options) -> list[Row]:
    """One row: the speed-up as a share of L/m."""
    # A round takes 15 s on two slow cores: in a quick run the median drops the cold one.
    plan = Plan(rounds=3, warmup=0) if options.quick else Plan(rounds=9, warmup=1)
    return [ingest(twins(options.device, plan.shape), plan)]


def ingest(pair: Twins, plan: Plan) -> Row:
    """Their seconds over ours, divided by L/m."""
    chunks = [random_ids(pair.ours, plan.chunk_tokens) for _ in range(plan.chunks)]
    ids = torch.tensor(chunks, device=pair.ours.device)  # (B, T)
    full_layers = pair.ours.layout.memory_layers[-1]  # below the memory layer, which only projects
    theory = plan.shape.layers / full_layers

    def whole() -> None:
        with torch.no_grad():
            pair.stock(input_ids=ids, use_cache=False, logits_to_keep=1)

    taken = interleaved(
        lambda: pair.ours.encode(chunks, []),
        whole,
        plan.rounds,
        warmup=plan.warmup,
        settle=pair.settle,
    )
    tokens = plan.chunks * plan.chunk_tokens
    speed = tokens / Spread.of(taken.ours_s).middle
    note = (
        f"{Spread.of(taken.speedups).middle:.2f}x a full forward, L/m = {plan.shape.layers}/"
        f"{full_layers} = {theory:.2f}; {speed:,.0f} tokens/s in a batch of {plan.chunks} x "
        f"{plan.chunk_tokens}; {pair.describe()}"
    )
    shares = [speedup / theory for speedup in taken.speedups]
    return row("ingest", Spread.of(shares), "of L/m", BAR, note)
