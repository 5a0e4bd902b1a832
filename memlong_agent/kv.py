"""Keys and values of one chunk: shapes, bytes, checks. No model, no disk.

Letters: L_mem memory layers, H_kv key/value heads, C tokens of a chunk, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from memlong_agent.errors import ConfigError


@dataclass(frozen=True, slots=True)
class KVSpec:
    """Shape and dtype that every chunk of a bank shares (only C differs)."""

    layers: tuple[int, ...]
    """Memory layers, 0-indexed, ascending."""
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes on disk, all memory layers together."""
        return 2 * len(self.layers) * self.kv_heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class KVChunk:
    """K/V of one chunk at every memory layer, keys before RoPE."""

    keys: torch.Tensor  # (L_mem, H_kv, C, D)
    values: torch.Tensor  # (L_mem, H_kv, C, D)

    def __post_init__(self) -> None:
        if self.keys.dim() != 4 or self.keys.shape != self.values.shape:
            raise ConfigError(
                "Keys and values must both be (layers, kv_heads, tokens, head_dim); got "
                f"{tuple(self.keys.shape)} and {tuple(self.values.shape)}. Pass equal shapes."
            )

    @property
    def tokens(self) -> int:
        return int(self.keys.shape[2])

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes
