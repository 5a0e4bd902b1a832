"""Whether memory grows with the length of a text that is read: resident bytes from 20 % to 100 %.

`memories.add` reads a stream of paragraphs into a bank on disk, under the hash embedder and a tiny
random model. Nothing is subtracted: the records that `add` returns, which hold the text once more,
count. It runs in a process of its own, since memory freed by other measurements would hide growth.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.rows import Bar, Options, Row, Spread, row

BAR = Bar("<=", 50.0)
TEXT_BYTES = 5_000_000
_CHUNK_TOKENS = 512  # characters here: as much text as 128 tokens of a real tokenizer hold
_FROM = 0.2  # before that, allocators and caches fill up whatever the length


@dataclass(frozen=True, slots=True)
class Reading:
    """What was seen while a text was read."""

    resident: list[tuple[int, int]]
    """Characters written so far, and resident bytes then."""
    chunks: int
    seconds: float


def measure(options: Options) -> list[Row]:
    """One row. Takes minutes: every chunk is a file that is made durable."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        reading = process.submit(read, TEXT_BYTES, options.device).result()
    note = (
        f"{TEXT_BYTES / 1e6:g} MB of text, {reading.chunks:,} chunks in {reading.seconds:.0f} s; "
        "the returned records count, their vectors are on disk"
    )
    return [row("rss", growth(reading.resident), "MB", BAR, note)]


def growth(resident: list[tuple[int, int]]) -> Spread:
    """MB above the first sample at 20 % or more of the text: at the end, least and most."""
    whole = resident[-1][0]
    later = [nbytes for done, nbytes in resident if done >= _FROM * whole]
    grown = [(nbytes - later[0]) / 1e6 for nbytes in later]
    return Spread(grown[-1], min(grown), max(grown))


def read(nbytes: int, device: str) -> Reading:
    """Read `nbytes` of generated text in this process, with a sample after each batch."""
    import psutil

    from benchmarks.models import tiny_model
    from benchmarks.text import paragraphs
    from memlong_agent import MemLong

    this = psutil.Process()
    resident: list[tuple[int, int]] = []
    with TemporaryDirectory() as home:
        model = tiny_model(Path(home) / "model")
        bank = Path(home) / "bank"
        with MemLong(model, bank, embedder="hash", device=device, chunk_tokens=_CHUNK_TOKENS) as ml:
            start = time.perf_counter()
            ml.memories(user_id="reader").add(
                paragraphs(nbytes, seed=4),
                source="generated",
                on_progress=lambda done: resident.append((done, this.memory_info().rss)),
            )
            seconds = time.perf_counter() - start
            chunks = sum(each.chunks for each in ml.stats().values())
    return Reading(resident, chunks, seconds)
