"""Whether a bank that lives long stays whole and small: memories added, deleted and recalled.

In rounds: 1,000 memories are encoded by a tiny random model and added, 100 of all that are there
are deleted, 100 questions recall. Resident bytes may grow by the vectors that the index holds in
RAM, and by little else; file handles stay as many; at the end the doctor finds nothing. It runs in
a process of its own, since memory freed by other measurements would hide growth.
"""

from __future__ import annotations

import gc
import multiprocessing
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.rows import Bar, Options, Row, Spread, row

BAR = Bar("<=", 20.0)
ROUNDS, ADDED, DELETED, RECALLED = 100, 1000, 100, 100
_NOON = datetime.fromisoformat("2026-11-20T12:00:00+00:00")
_VECTOR_BYTES = 256 * 2  # the hash embedder's dimensions in fp16, as the index holds them


@dataclass(frozen=True, slots=True)
class Life:
    """What was seen after each round, and at the end."""

    resident: list[int]
    memories: list[int]
    handles: list[int]
    problems: list[str]
    seconds: float

    @property
    def grown(self) -> list[float]:
        """MB that each round of the second half lies above its first, vectors taken off."""
        own = [
            (resident - memories * _VECTOR_BYTES) / 1e6
            for resident, memories in zip(self.resident, self.memories, strict=True)
        ]
        half = len(own) // 2
        return [each - own[half] for each in own[half:]]


def measure(options: Options) -> list[Row]:
    """Three rows. The full size writes 100,000 files and takes minutes; 10 rounds with --quick."""
    rounds = ROUNDS // 10 if options.quick else ROUNDS
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        life = process.submit(live, rounds, ADDED, DELETED, RECALLED).result()
    note = (
        f"{rounds * ADDED:,} memories added, {rounds * DELETED:,} deleted, {rounds * RECALLED:,} "
        f"recalls in {life.seconds:.0f} s; beyond the vectors, second half"
    )
    grown = Spread(life.grown[-1], min(life.grown), max(life.grown))
    handles = [each - life.handles[0] for each in life.handles]
    found = float(len(life.problems))
    return [
        row("soak: resident memory", grown, "MB", BAR, note),
        row(
            "soak: file handles",
            Spread(handles[-1], min(handles), max(handles)),
            "more",
            Bar("<=", 0.0),
            "than after the first round",
        ),
        row(
            "soak: doctor",
            Spread(found, found, found),
            "problems",
            Bar("<=", 0.0),
            "; ".join(life.problems[:3]),
        ),
    ]


class Held:
    """Ids of the memories that are there, in room that is taken at the start: what the measurement
    itself keeps must not look like growth."""

    def __init__(self, most: int) -> None:
        self._ids = np.full((most, 16), 255, np.uint8)  # touched, so that it is resident
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, memory_id: str) -> None:
        """Keep an id of 32 hexadecimal digits."""
        self._ids[self._count] = np.frombuffer(bytes.fromhex(memory_id), np.uint8)
        self._count += 1

    def take(self, chance: random.Random) -> str:
        """One of them by chance, which is not kept any more."""
        at = chance.randrange(self._count)
        taken: str = self._ids[at].tobytes().hex()
        self._count -= 1
        self._ids[at] = self._ids[self._count]
        return taken


def live(rounds: int, added: int, deleted: int, recalled: int) -> Life:
    """So many rounds in this process."""
    import psutil

    from benchmarks.models import tiny_model
    from benchmarks.text import sentences
    from memlong_agent import MemLong
    from memlong_agent.chunking import exchange_chunks
    from memlong_agent.memory import Draft
    from memlong_agent.storage import Owner

    this, chance, owner = psutil.Process(), random.Random(0), Owner("default", "user", "long")
    resident, memories, handles = [], [], []
    start = time.perf_counter()
    with TemporaryDirectory() as home:
        model = tiny_model(Path(home) / "model")
        with MemLong(model, Path(home) / "bank", embedder="hash", chunk_tokens=512) as ml:
            gc.freeze()  # what was imported need not be looked at again
            engine, held = ml.engine, Held(rounds * added)
            for number in range(rounds):
                texts = [f"{number}: {text}" for text in sentences(added, seed=number)]
                cuts = [
                    exchange_chunks([("user", text)], _NOON, engine.tokenize, 512) for text in texts
                ]
                encoded = iter(engine.encode([chunk for cut in cuts for chunk in cut]))
                drafts = [
                    Draft(role="user", text=text, chunks=[next(encoded) for _ in cut])
                    for text, cut in zip(texts, cuts, strict=True)
                ]
                for each in engine.bank.add(owner, drafts).memories:
                    held.add(each.id)
                engine.bank.delete(owner, [held.take(chance) for _ in range(deleted)])
                for text in sentences(recalled, seed=number + 1):
                    engine.bank.recall(owner, text, top_k=8)
                gc.collect()
                resident.append(this.memory_info().rss)
                memories.append(len(held))
                handles.append(this.num_fds())
            seconds = time.perf_counter() - start
            problems = list(ml.doctor().problems)
    return Life(resident, memories, handles, problems, seconds)
