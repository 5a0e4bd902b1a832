"""The bytes of one K/V file: a valid safetensors file, written and read without parsing.

In: a `KVChunk` of a `KVSpec`. Out: buffers to write; from a buffer that was read, the chunk again.
It knows no folder and no row.

Layout: header, padded with spaces to a multiple of 4096 bytes (one page, unless more than about
twenty layers are stored), so that the payload is page-aligned; then `k.<layer>` for all layers,
then `v.<layer>`, each (H_kv, C, D). The header follows from spec and C alone, so one read gets
everything. In an encrypted bank the file is this, sealed for its blob id as one value. The checksum
covers the whole file as it is stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import xxhash

from memlong_agent.errors import ConfigError, StoreCorruptError
from memlong_agent.kv import KVChunk, KVSpec
from memlong_agent.storage.seal import PLAIN, Cipher

_PAGE = 4096
_PLACE = "kv file"
_BEGINS = b'{"__metadata__"'  # of a plain file, behind its length word
DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


@dataclass(frozen=True, slots=True)
class BlobRef:
    """What the row of a chunk knows of its file."""

    blob_id: str
    tokens: int
    nbytes: int
    """Size of the whole file."""
    checksum: str
    """xxh3_64 of the whole file, 16 hexadecimal digits."""


def spec_to_json(spec: KVSpec) -> str:
    """As the bank records it."""
    values = {
        "layers": list(spec.layers),
        "kv_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "dtype": str(spec.dtype).removeprefix("torch."),
    }
    return json.dumps(values, sort_keys=True)


def spec_from_json(text: str) -> KVSpec:
    """What :func:`spec_to_json` made. StoreCorruptError for anything else."""
    try:
        values = json.loads(text)
        dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPE_NAMES}
        layers, sizes = tuple(values["layers"]), (values["kv_heads"], values["head_dim"])
        if not layers or any(type(each) is not int or each < 0 for each in (*layers, *sizes)):
            raise ValueError
        return KVSpec(layers, *sizes, dtypes[values["dtype"]])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise StoreCorruptError(
            f"The bank's record of its K/V is damaged: {text[:60]!r}. Restore the bank from a "
            "backup."
        ) from None


@lru_cache(maxsize=256)
def header_of(spec: KVSpec, tokens: int) -> bytes:
    """Length word and padded JSON of a chunk's file; its size is a multiple of 4096."""
    shape = [spec.kv_heads, tokens, spec.head_dim]
    each = spec.kv_heads * tokens * spec.head_dim * spec.dtype.itemsize
    names = [f"{kind}.{layer}" for kind in "kv" for layer in spec.layers]
    entries: dict[str, object] = {"__metadata__": {"format": "memlong-kv", "version": "1"}}
    for place, name in enumerate(names):
        offsets = [place * each, (place + 1) * each]
        entries[name] = {"dtype": DTYPE_NAMES[spec.dtype], "shape": shape, "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = -(-(8 + len(text)) // _PAGE) * _PAGE - 8
    return length.to_bytes(8, "little") + text.ljust(length)


def encode(spec: KVSpec, chunk: KVChunk) -> list[memoryview]:
    """Header, keys, values: the file, in three buffers that share the chunk's memory on a CPU."""
    expected = (len(spec.layers), spec.kv_heads, spec.head_dim)
    layers, heads, tokens, dim = chunk.keys.shape
    dtypes = {chunk.keys.dtype, chunk.values.dtype}
    if (layers, heads, dim) != expected or dtypes != {spec.dtype} or tokens == 0:
        raise ConfigError(
            f"This bank stores K/V of (layers, kv_heads, head_dim) = {expected} in {spec.dtype}; "
            f"got {(layers, heads, dim)} with {tokens} tokens in {dtypes}. "
            "Encode with the bank's model."
        )
    return [memoryview(header_of(spec, tokens)), bytes_of(chunk.keys), bytes_of(chunk.values)]


def decode(spec: KVSpec, tokens: int, name: str, buffer: torch.Tensor) -> KVChunk:
    """Views into `buffer` (a whole file as uint8), which is what `encode` made of as many tokens.

    Nothing is copied. StoreCorruptError otherwise: a checksum can be true of a wrong file.
    """
    header = header_of(spec, tokens)
    size = len(header) + tokens * spec.bytes_per_token
    if tokens < 1 or buffer.numel() != size:
        raise damaged(name, f"{size} bytes for {tokens} tokens", f"{buffer.numel()} bytes")
    if memory_of(buffer)[: len(header)] != header:
        raise damaged(name, "the header of its shape", "another")
    shape = (len(spec.layers), spec.kv_heads, tokens, spec.head_dim)
    payload = buffer[len(header) :].view(spec.dtype)
    keys, values = payload.view(2, *shape).unbind(0)  # (L, H_kv, C, D) each
    return KVChunk(keys, values)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor as it looks, shared with it where that is possible."""
    # bf16 has no numpy dtype: reinterpret as bytes before leaving torch.
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memory_of(flat)


def memory_of(buffer: torch.Tensor) -> memoryview:
    """The bytes of a flat uint8 CPU tensor, shared with it."""
    array: Any = buffer.numpy()  # numpy's stubs do not say that arrays are buffers
    return memoryview(array)


def checksum_of(parts: Iterable[memoryview]) -> str:
    """xxh3_64 over all parts: 85 GB/s measured, so every read is checked."""
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def looks_plain(path: Path) -> bool:
    """Whether a file, or the beginning of one, is not sealed."""
    with path.open("rb") as file:
        return file.read(8 + len(_BEGINS))[8:] == _BEGINS


def sealed(cipher: Cipher, blob_id: str, parts: Sequence[memoryview]) -> Sequence[memoryview]:
    """The file as it is stored: the same buffers, or one that is sealed for this id."""
    if not cipher.sealed:
        return parts
    return [memoryview(cipher.seal(b"".join(parts), _PLACE, blob_id))]


def checked(
    spec: KVSpec,
    ref: BlobRef,
    name: str,
    buffer: torch.Tensor,
    cipher: Cipher = PLAIN,
    *,
    pin: bool = False,
) -> KVChunk:
    """Decode a whole file after comparing its checksum; StoreCorruptError names the file.

    With `pin` what was unsealed lies in pinned memory.
    """
    found = checksum_of([memory_of(buffer)])
    if found != ref.checksum:
        raise damaged(name, f"checksum {ref.checksum}", f"checksum {found}")
    if cipher.sealed:
        try:
            plain = cipher.open(memory_of(buffer), _PLACE, ref.blob_id)
        except StoreCorruptError:
            raise damaged(name, "a file that this bank sealed", "another") from None
        buffer = torch.empty(len(plain), dtype=torch.uint8, pin_memory=pin)
        memory_of(buffer)[:] = plain
    return decode(spec, ref.tokens, name, buffer)


def damaged(name: str, expected: str, found: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"{name} is damaged: expected {expected}, found {found}. Its text is safe in the database: "
        "memlong doctor --repair makes the file anew."
    )
