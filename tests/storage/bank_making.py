"""What the storage tests write; it ships with the contract."""

from memlong_agent.testing.contract.making import (
    ALICE,
    BOB,
    EMBEDDER,
    MODEL,
    NOON,
    SPEC,
    Clock,
    chunk,
    kv_of,
    memory,
    vector_of,
)

__all__ = [
    "ALICE",
    "BOB",
    "EMBEDDER",
    "MODEL",
    "NOON",
    "SPEC",
    "Clock",
    "chunk",
    "kv_of",
    "memory",
    "vector_of",
]
