"""How long one turn waits for its memory in a large bank: from the question to placed K/V.

Timed is `Engine.recall`, as a turn calls it: embed the question, search words and vectors, read
rows and K/V, leave out what the window shows, place. The bank holds many one-chunk memories of one
owner. Their vectors are random, since embedding all of them would take longer than the benchmark;
questions are embedded by the real MiniLM. No cosine is too low, so that 8 chunks are always read.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.models import tiny_model
from benchmarks.rows import Bar, Options, Row, Spread, row
from benchmarks.text import sentences
from benchmarks.timing import timed
from memlong_agent import MemLong
from memlong_agent.chunking import ChunkText
from memlong_agent.embedding import Embedder, Vectors, minilm
from memlong_agent.engine import Engine
from memlong_agent.identity import Identity
from memlong_agent.kv import KVChunk
from memlong_agent.memory import Draft, MemoryBank
from memlong_agent.storage import Owner

BAR = Bar("<=", 20.0)
OWNER = Owner("default", "user", "reader")
_HEADER = "[2026-11-20 14:05] User: "
_BATCH = 1000  # memories of one commit
TOP_K = 8
WARMUP = 5  # the first question builds the owner's index


class RandomTexts:
    """MiniLM for questions; for texts random unit vectors of the same length, by seed."""

    identity = Identity({"embedder": "benchmark", "version": "1"})
    threshold = 0.0
    share_of_best = 0.0

    def __init__(self, questions: Embedder, seed: int) -> None:
        self._questions = questions
        self._rng = np.random.default_rng(seed)
        self.dimensions = questions.dimensions
        self.max_tokens = questions.max_tokens

    def embed_query(self, text: str) -> Vectors:
        return self._questions.embed_query(text)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        drawn = self._rng.standard_normal((len(texts), self.dimensions), np.float32)  # (N, E)
        unit: Vectors = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        return unit


@dataclass(frozen=True, slots=True)
class Plan:
    """Size of the bank and number of questions."""

    memories: int
    turns: int
    on_disk: bool
    chunk_tokens: int = 12
    window_tokens: int = 1024


def measure(options: Options) -> list[Row]:
    """Median and 95th percentile of one turn's retrieval."""
    if options.quick:
        # In files, writing 100,000 memories would take longer than the 3 minutes.
        plan = Plan(memories=100_000, turns=150, on_disk=options.bank_on_disk)
    else:
        plan = Plan(memories=100_000, turns=300, on_disk=True)
    return retrieval(plan, minilm(), options.device)


def retrieval(plan: Plan, questions: Embedder, device: str) -> list[Row]:
    """Both rows, from a bank that is built for them and removed afterwards."""
    with TemporaryDirectory() as home:
        model = tiny_model(Path(home) / "model")
        bank = Path(home) / "bank" if plan.on_disk else ":memory:"
        embedder = RandomTexts(questions, seed=0)
        with MemLong(
            model,
            bank,
            embedder=embedder,
            device=device,
            top_k=TOP_K,
            window_tokens=plan.window_tokens,
        ) as ml:
            start = time.perf_counter()
            fill(ml.engine, plan)
            build_s = time.perf_counter() - start
            taken_ms, recalled = _turns(ml.engine, plan)
    where = "files" if plan.on_disk else 'bank=":memory:"'
    note = (
        f"{plan.memories:,} memories of one owner in {where}, written in {build_s:.0f} s; "
        f"{recalled:g} chunks recalled a turn; MiniLM, warm"
    )
    spread = Spread.of(taken_ms)
    late = Spread(
        statistics.quantiles(taken_ms, n=20, method="inclusive")[-1], spread.low, spread.high
    )
    return [
        row("retrieval", spread, "ms", BAR, note),
        row("retrieval p95", late, "ms", None, f"95th percentile of {plan.turns} turns"),
    ]


def fill(engine: Engine, plan: Plan) -> None:
    """Write the memories; all have the same K/V, each its own file."""
    spec = engine.model.spec
    shape = (len(spec.layers), spec.kv_heads, plan.chunk_tokens, spec.head_dim)
    kv = KVChunk(torch.randn(shape).to(spec.dtype), torch.randn(shape).to(spec.dtype))
    texts = sentences(plan.memories, seed=1)
    for start in range(0, len(texts), _BATCH):
        _add(engine.bank, texts[start : start + _BATCH], kv)


def _add(bank: MemoryBank, texts: Sequence[str], kv: KVChunk) -> None:
    ids = tuple(range(kv.tokens))
    drafts = [
        Draft(role="user", text=text, chunks=[(ChunkText(_HEADER, text, ids), kv)])
        for text in texts
    ]
    bank.add(OWNER, drafts)


def turns_of(engine: Engine, window_tokens: int) -> Callable[[str], int]:
    """One turn's recall for a question, with a full window; gives the number of chunks."""
    text = " ".join(sentences(window_tokens // 32, seed=3))
    window = engine.tokenize([text[:window_tokens]])[0]

    def recall(question: str) -> int:
        recalled = engine.recall(
            OWNER,
            question,
            session="now",
            turn="now",
            top_k=TOP_K,
            window_ids=lambda: window,
        )
        return len(recalled.hits)

    return recall


def _turns(engine: Engine, plan: Plan) -> tuple[list[float], float]:
    """Milliseconds of each turn, and the mean number of chunks recalled."""
    asked = sentences(WARMUP + plan.turns, seed=2)
    recall = turns_of(engine, plan.window_tokens)
    found: list[int] = []

    def turn(question: str) -> None:
        found.append(recall(question))

    taken_ms = [1e3 * timed(lambda q=question: turn(q)) for question in asked]  # type: ignore[misc]
    return taken_ms[WARMUP:], statistics.fmean(found[WARMUP:])
