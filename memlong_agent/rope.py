"""Rotary position of recalled keys. Keys are stored before RoPE and placed here, once per recall.

In: un-rotated keys and the cosine/sine tables of the model's own rotary module. Knows no model.
Letters: B batch, H_kv key/value heads, M recalled tokens, D head dimension.
"""

from __future__ import annotations

import torch


def rotate(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Keys `(B, H_kv, M, D)` turned to the positions of `cos`, `sin` `(B or 1, M, D)`.

    Rotation runs in float32 and is cast back: bf16 tables would cost 3 digits once per recall.
    The half-split pairing is that of Llama, Mistral, Qwen2 and Qwen3 in transformers.
    """
    wide = keys.float()  # (B, H_kv, M, D)
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    placed = wide * cos.float().unsqueeze(1) + turned * sin.float().unsqueeze(1)
    return placed.to(keys.dtype)


def memory_positions(policy: str, tokens: int, window_start: int) -> list[int]:
    """Position of each of `tokens` recalled tokens, in time order.

    `zero` and `far` put all at 0. `contiguous` ends right before the window: only the distance
    between two positions counts under RoPE, so M tokens at `window_start - M ...` equal M tokens
    at 0..M-1 before a window at M, and the window need not move when M changes.
    """
    if policy == "contiguous":
        return list(range(window_start - tokens, window_start))
    return [0] * tokens


def window_start(policy: str, memory_span: int, window_tokens: int) -> int:
    """First position of the live window; `memory_span` is the most tokens ever recalled at once."""
    return {"zero": 1, "contiguous": memory_span, "far": window_tokens}[policy]
