"""What the tests of the contract write: small memories whose K/V follow from their text."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import numpy as np
import torch

from memlong_agent.identity import Identity
from memlong_agent.kv import KVChunk, KVSpec
from memlong_agent.storage import NewChunk, NewMemory, Owner, Storage

SPEC = KVSpec(layers=(3, 5), kv_heads=2, head_dim=8, dtype=torch.bfloat16)
MODEL = Identity({"embeddings": "aaaa", "tokenizer": "bbbb"})
EMBEDDER = Identity({"embedder": "test", "dim": "6"})
ALICE = Owner("default", "user", "alice")
BOB = Owner("default", "user", "bob")
NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = NOON
        self.hook: Callable[[], object] | None = None
        """Called first whenever somebody asks for the time."""

    def __call__(self) -> datetime:
        if self.hook is not None:
            self.hook()
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def kv_of(text: str, tokens: int, spec: KVSpec = SPEC) -> KVChunk:
    """K/V that only this text has; equal in every process."""
    source = torch.Generator().manual_seed(zlib.crc32(text.encode()))
    shape = (2, len(spec.layers), spec.kv_heads, tokens, spec.head_dim)
    keys, values = torch.randn(shape, generator=source).to(spec.dtype)
    return KVChunk(keys, values)


def vector_of(text: str, dim: int = 6) -> Any:
    vector = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(dim)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def chunk(text: str, tokens: int = 5, spec: KVSpec = SPEC) -> NewChunk:
    ids = tuple(70_000 + i for i in range(tokens))
    return NewChunk("[header] ", text, ids, kv_of(text, tokens, spec), vector_of(text))


def memory(*texts: str, **fields: Any) -> NewMemory:
    """One exchange with a chunk for each text."""
    fields = {"role": "exchange", "text": " ".join(texts), **fields}
    return NewMemory(chunks=[chunk(text) for text in texts], **fields)


def equal(kv: KVChunk, text: str) -> bool:
    """Whether these are the K/V of a text."""
    expected = kv_of(text, kv.tokens)
    return torch.equal(kv.keys, expected.keys) and torch.equal(kv.values, expected.values)


class Opener(Protocol):
    """Opens the bank of a test, made when first opened; `options` as for `Storage.open`."""

    def __call__(self, **options: Any) -> Storage: ...
