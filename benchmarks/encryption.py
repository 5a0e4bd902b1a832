"""What encryption costs: one turn's recall from an encrypted bank beside the same from a plain one.

Timed is `Engine.recall`, as in retrieval.py, on two banks in files that hold the same memories, in
turn, for the same questions. Once with MiniLM embedding each question, as a turn does, and once
with the questions' vectors known, which is what the bank alone takes. Opening an encrypted bank
also builds its word index in memory; that is timed by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.models import tiny_model
from benchmarks.retrieval import TOP_K, WARMUP, Plan, RandomTexts, fill, turns_of
from benchmarks.rows import Bar, Options, Row, Spread, row
from benchmarks.text import sentences
from benchmarks.timing import Pairs, interleaved
from memlong_agent import MemLong
from memlong_agent.embedding import Embedder, Vectors, minilm

BAR = Bar("<=", 1.15)
_KEY = bytes(range(32))


class Known:
    """An embedder of questions that remembers its answers."""

    def __init__(self, questions: Embedder) -> None:
        self._questions = questions
        self._answers: dict[str, Vectors] = {}
        self.remembers = False
        self.identity = questions.identity
        self.dimensions = questions.dimensions
        self.max_tokens = questions.max_tokens
        self.threshold = questions.threshold
        self.share_of_best = questions.share_of_best

    def embed_query(self, text: str) -> Vectors:
        if self.remembers and text in self._answers:
            return self._answers[text]
        self._answers[text] = self._questions.embed_query(text)
        return self._answers[text]

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        return self._questions.embed_texts(texts)


def measure(options: Options) -> list[Row]:
    """Ratios of both recalls, and the seconds of opening."""
    memories, turns = (1_000, 60) if options.quick else (10_000, 300)
    return encryption(Plan(memories, turns, on_disk=True), minilm(), options.device)


def encryption(plan: Plan, questions: Embedder, device: str) -> list[Row]:
    """All rows, from banks that are built for them and removed afterwards."""
    known = Known(questions)
    with TemporaryDirectory() as home:
        model = tiny_model(Path(home) / "model")

        def opened(name: str, key: bytes | None) -> MemLong:
            return MemLong(
                model,
                Path(home) / name,
                embedder=RandomTexts(known, seed=0),
                device=device,
                key=key,
                top_k=TOP_K,
                window_tokens=plan.window_tokens,
            )

        for name, key in (("sealed", _KEY), ("plain", None)):
            with opened(name, key) as ml:
                fill(ml.engine, plan)
        opening = [_opening(lambda: opened("sealed", _KEY)) for _ in range(3)]
        plainly = [_opening(lambda: opened("plain", None)) for _ in range(3)]
        with opened("sealed", _KEY) as sealed, opened("plain", None) as plain:
            whole = _recalls(sealed, plain, plan)
            known.remembers = True
            bank = _recalls(sealed, plain, plan)
    note = f"{plan.memories:,} memories in files, {plan.turns} turns each, interleaved"
    return [
        row("encryption", Spread.of(whole.slowdowns), "x plain", BAR, f"{note}; with MiniLM"),
        row("encryption, bank", Spread.of(bank.slowdowns), "x plain", None, _ms(bank)),
        row("encrypted open", Spread.of(opening), "s", None, f"plain: {min(plainly):.2f} s"),
    ]


def _opening(open_: Callable[[], MemLong]) -> float:
    start = time.perf_counter()
    with open_():
        return time.perf_counter() - start


def _recalls(sealed: MemLong, plain: MemLong, plan: Plan) -> Pairs:
    ours, theirs = (turns_of(ml.engine, plan.window_tokens) for ml in (sealed, plain))
    asked = iter(sentences(WARMUP + plan.turns, seed=2) * 2)
    question = ""

    def next_ours() -> None:
        nonlocal question
        question = next(asked)
        ours(question)

    return interleaved(next_ours, lambda: theirs(question), plan.turns, warmup=WARMUP)


def _ms(pairs: Pairs) -> str:
    ours, theirs = Spread.of(pairs.ours_s), Spread.of(pairs.theirs_s)
    return f"embedding left out: {1e3 * ours.middle:.2f} ms against {1e3 * theirs.middle:.2f} ms"
