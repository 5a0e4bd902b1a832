"""The binary half of a part: what the lines of JSON beside it cannot hold, as safetensors.

In: token ids, vectors and K/V of the part's chunks, in order. Out: the same. The header follows
from four numbers, so a reader compares it instead of parsing it. Tensors, each over all chunks:
`kv_checksums` (N,) U64, `token_ids` (T,) U32, `vectors` (V, E) F32, `kv` (K,) in the bank's dtype;
of each chunk keys, then values, each (L_mem, H_kv, C, D). A part of items has `vectors` only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xxhash

from memlong_agent.kv import KVChunk, KVSpec
from memlong_agent.storage.kvfile import DTYPE_NAMES, bytes_of

_PAD = 64


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a header follows from."""

    chunks: int  # N
    tokens: int  # T
    vectors: int  # V
    dimensions: int  # E


def header_of(spec: KVSpec | None, sizes: Sizes) -> bytes:
    """Length word and padded JSON; without `spec`, of a part that holds vectors only."""
    named: list[tuple[str, str, list[int], int]] = []
    if spec is not None:
        named.append(("kv_checksums", "U64", [sizes.chunks], 8))
        named.append(("token_ids", "U32", [sizes.tokens], 4))
    named.append(("vectors", "F32", [sizes.vectors, sizes.dimensions], 4))
    if spec is not None:
        numbers = sizes.tokens * spec.bytes_per_token // spec.dtype.itemsize
        named.append(("kv", DTYPE_NAMES[spec.dtype], [numbers], spec.dtype.itemsize))
    entries: dict[str, object] = {"__metadata__": {"format": "memlong-archive", "version": "1"}}
    at = 0
    for name, dtype, shape, width in named:
        size = width * (shape[0] * shape[1] if len(shape) == 2 else shape[0])
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = -(-(8 + len(text)) // _PAD) * _PAD - 8
    return length.to_bytes(8, "little") + text.ljust(length)


def check_of(parts: Sequence[memoryview]) -> int:
    """xxh3_64 of a chunk's keys and values."""
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.intdigest()


def kv_parts(chunk: KVChunk) -> list[memoryview]:
    """Keys, then values, as bytes."""
    return [bytes_of(chunk.keys), bytes_of(chunk.values)]


def kv_from(spec: KVSpec, tokens: int, data: bytearray) -> KVChunk:
    """The chunk again; a view of `data`."""
    shape = (2, len(spec.layers), spec.kv_heads, tokens, spec.head_dim)
    keys, values = torch.frombuffer(data, dtype=torch.uint8).view(spec.dtype).view(shape).unbind(0)
    return KVChunk(keys, values)


def published(spec: KVSpec, tokens: int) -> KVChunk:
    """Stands for K/V that lie in their file already: a shape without bytes."""
    shape = (len(spec.layers), spec.kv_heads, tokens, spec.head_dim)
    empty = torch.empty(shape, dtype=spec.dtype, device="meta")
    return KVChunk(empty, empty)
