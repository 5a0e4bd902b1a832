"""Banks, drafts and embedders for the tests of the memory room.

K/V of a chunk are a function of its text, so that a test can tell whose K/V came back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from memlong_agent.chunking import ChunkText
from memlong_agent.config import Settings
from memlong_agent.embedding import Embedder, Vectors
from memlong_agent.identity import Identity
from memlong_agent.kv import KVChunk, KVSpec
from memlong_agent.memory import Draft, MemoryBank
from memlong_agent.storage import Owner

SPEC = KVSpec(layers=(3,), kv_heads=2, head_dim=8, dtype=torch.float32)
ENCODING = Identity({"model": "test"})
ALICE = Owner("default", "user", "alice")
BOB = Owner("default", "user", "bob")
START = datetime(2026, 11, 20, 14, 5, tzinfo=UTC)


class Clock:
    """A second later at every look."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


class Scattered:
    """A random direction for each text: words say nothing about the cosine."""

    identity = Identity({"embedder": "scattered"})
    dimensions = 32
    max_tokens = 1 << 20
    threshold = -1.0
    share_of_best = 0.0

    def embed_query(self, text: str) -> Vectors:
        seed = xxhash.xxh3_64_intdigest(text.encode())
        vector = np.random.default_rng(seed).standard_normal(self.dimensions).astype(np.float32)
        return vector / np.linalg.norm(vector)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        return np.array([self.embed_query(text) for text in texts], np.float32)


class Compass:
    """The angle written in a text, `@30`, in degrees; the question looks east, at 0.

    A text without an angle has no direction: a vector of zeros.
    """

    identity = Identity({"embedder": "compass"})
    dimensions = 2
    max_tokens = 1 << 20
    threshold = 0.5  # 60 degrees
    share_of_best = 0.0

    def embed_query(self, text: str) -> Vectors:
        return np.array([1.0, 0.0], np.float32)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        rows = []
        for text in texts:
            angle = re.search(r"@(\d+)", text)
            at = np.radians(float(angle[1])) if angle else 0.0
            rows.append([np.cos(at), np.sin(at)] if angle else [0.0, 0.0])
        return np.array(rows, np.float32)


def open_bank(
    path: str | Path = ":memory:", *, embedder: str | Embedder = "hash", **options: Any
) -> MemoryBank:
    """A bank of the test model; `options` are settings or arguments of `MemoryBank.open`."""
    ours = ("clock", "database", "encoding", "index_backend", "key", "spec")
    named = {key: options.pop(key) for key in ours if key in options}
    named = {"clock": Clock(), "encoding": ENCODING, "spec": SPEC, **named}
    return MemoryBank.open(path, embedder=embedder, settings=Settings(**options), **named)


def kv_of(body: str, tokens: int) -> KVChunk:
    seed = xxhash.xxh3_64_intdigest(body.encode()) % (1 << 62)
    shape = (2, len(SPEC.layers), SPEC.kv_heads, tokens, SPEC.head_dim)
    keys, values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return KVChunk(keys, values)


def draft(
    *bodies: str, tokens: int = 8, header: str = "[2026-11-20 14:05] ", **fields: Any
) -> Draft:
    """A memory with one chunk for each body."""
    chunks = [
        (ChunkText(header, body, tuple(range(tokens))), kv_of(body, tokens)) for body in bodies
    ]
    plain = Draft(role="exchange", text="".join(bodies), chunks=chunks, session="s")
    return replace(plain, **fields)


def exchange(said: str, reply: str, **fields: Any) -> Draft:
    """A finished exchange, user and assistant in one chunk."""
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": reply}]
    return draft(f"{said}\nAssistant: {reply}", messages=messages, **fields)


def texts(found: Sequence[Any]) -> list[str]:
    """Texts of recalls, hits or memories."""
    return [each.chunk.text if hasattr(each, "kv") else each.text for each in found]
