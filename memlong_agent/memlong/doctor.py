"""Whether a bank is whole and its memory is used: one examination, in plain findings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import torch

from memlong_agent.chunking import ChunkText, exchange_chunks
from memlong_agent.config import Frozen
from memlong_agent.engine import Engine
from memlong_agent.kv import KVChunk
from memlong_agent.storage import StoredChunk

_TOLD, _ASKED = "The spare key is under the copper teapot.", "Where is the spare key?"


class Diagnosis(Frozen):
    """What `memlong doctor` found; `healthy` when nothing is wrong."""

    problems: tuple[str, ...]
    encoding: dict[str, str]
    """The encoding identity by part, computed now from the weights in use."""
    retrieval: dict[str, str]
    memories: int
    chunks: int
    tokens: int
    bank_bytes: int
    logit_difference: float
    """Largest change of any next-token logit by one recalled chunk; 0: memory is unused."""
    schema_step: str
    """The newest schema step of the bank."""
    database: str
    """Program and version that hold the rows."""
    encrypted: bool
    word_index_s: float | None
    """Seconds that building an encrypted bank's word index in memory took; None when plain."""
    pending: int
    """Memories of turns that run, or died a short while ago."""
    expired: int
    """Memories whose time is over; never recalled."""
    repaired: tuple[str, ...] = ()
    """What a repair made anew, before `problems` were looked for."""

    @property
    def healthy(self) -> bool:
        return not self.problems


def examine(engine: Engine, *, repair: bool = False) -> Diagnosis:
    """Verify every row and file (reads the whole bank) and measure memory on against off.

    What is left of something forgotten is purged first. With `repair` what is derived from the text
    is made anew where it is missing or damaged: K/V, vectors, word index, counts; strays go, modes
    of files are set. Text is never touched.
    """
    if engine.bank.unpurged():
        engine.bank.purge()
    repaired = engine.bank.repairs.run(lambda chunks: _encoded(engine, chunks)) if repair else []
    stats, condition = engine.bank.stats().values(), engine.bank.repairs.condition()
    problems = list(engine.bank.verify())
    moved = logit_difference(engine)
    if not moved > 0:
        problems.append(
            "Recalled memory does not change the logits. Train the model or choose another."
        )
    encoding, retrieval = engine.bank.identities()
    return Diagnosis(
        problems=tuple(problems),
        encoding=dict(encoding.parts),
        retrieval=dict(retrieval.parts),
        memories=sum(owner.memories for owner in stats),
        chunks=sum(owner.chunks for owner in stats),
        tokens=sum(owner.tokens for owner in stats),
        bank_bytes=sum(owner.nbytes for owner in stats),
        logit_difference=moved,
        schema_step=condition.schema,
        database=condition.database,
        encrypted=condition.encrypted,
        word_index_s=condition.word_index_s,
        pending=condition.pending,
        expired=condition.expired,
        repaired=tuple(repaired),
    )


def _encoded(engine: Engine, chunks: Sequence[StoredChunk]) -> list[KVChunk]:
    """K/V of chunks as they were cut; the bank belongs to this very model."""
    cut = [ChunkText(chunk.header, chunk.text, chunk.token_ids) for chunk in chunks]
    return [kv for _, kv in engine.encode(cut)]


@torch.no_grad()
def logit_difference(engine: Engine) -> float:
    """Largest change of a next-token logit when one chunk is recalled for a question."""
    chunks = exchange_chunks(
        [("user", _TOLD)],
        datetime(2026, 1, 1, tzinfo=UTC),
        engine.tokenize,
        engine.settings.chunk_tokens,
    )
    memory = engine.model.recall([kv for _, kv in engine.encode(chunks)], engine.placement)
    ids = torch.tensor(engine.tokenize([_ASKED]), device=engine.model.device)
    start = engine.placement.start
    on = engine.model.forward(ids, start, memory=memory, last_only=True)
    off = engine.model.forward(ids, start, last_only=True)
    return float((on - off).abs().max())
