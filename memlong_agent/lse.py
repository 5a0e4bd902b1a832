"""Attention that also returns its log-sum-exp: by fused kernels where right, else plain torch.

`F.scaled_dot_product_attention` hides the log-sum-exp that merging two softmax parts needs, so the
operators below it are called here, behind one signature. Which operator serves a device, dtype and
head dimension is found out once by comparing it to the plain version on a small random input.

Letters: B batch, H query heads, H_kv key/value heads, T queries, N keys, D head dimension.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch

Pair = tuple[torch.Tensor, torch.Tensor]
Kernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, bool, float], Pair
]
_log = logging.getLogger(__name__)
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}  # else 5e-2: bf16 and fp16


def attend(
    query: torch.Tensor,  # (B, H, T, D)
    key: torch.Tensor,  # (B, H_kv, N, D)
    value: torch.Tensor,  # (B, H_kv, N, D)
    mask: torch.Tensor | None,  # (B or 1, 1, T or 1, N) additive
    causal: bool,  # query i sees keys 0..i; only with N == T
    scaling: float,
) -> Pair:
    """Softmax attention `(B, H, T, D)` and its float32 log-sum-exp `(B, H, T)`.

    Raises ValueError when the batch sizes differ: one fused operator would read out of bounds.
    """
    if not query.shape[0] == key.shape[0] == value.shape[0]:
        raise ValueError(f"batch sizes differ: {query.shape[0]}, {key.shape[0]}, {value.shape[0]}")
    if mask is not None:
        mask = mask.to(query.dtype).expand(query.shape[0], 1, query.shape[2], key.shape[2])
    kernel = _kernel(query.device.type, query.dtype, query.shape[-1], mask is not None)
    out, total = kernel(query, key, value, mask, causal, scaling)
    if mask is not None:
        # The CPU kernel answers 0, not -inf, for a query that sees nothing.
        blind = torch.isneginf(mask).all(-1)  # (B, 1, T)
        total = total.masked_fill(blind, float("-inf"))
    return out, total


def plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scaling: float,
) -> Pair:
    """The definition, in float32; fallback on unknown devices and oracle of the tests."""
    key, value = _repeat(key, query), _repeat(value, query)
    logits = (query.float() @ key.float().transpose(-1, -2)) * scaling  # (B, H, T, N)
    if mask is not None:
        logits = logits + mask.float()
    if causal:
        logits = logits.masked_fill(
            torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1),
            float("-inf"),
        )
    total = logits.logsumexp(-1)  # (B, H, T)
    out = torch.exp(logits - total.unsqueeze(-1)) @ value.float()
    return out.to(query.dtype), total


def has_backward(query: torch.Tensor) -> bool:
    """Whether `attend_backward` serves this tensor's device and dtype."""
    return query.device.type == "cpu" and query.dtype in (torch.float32, torch.bfloat16)


def attend_backward(
    grad_out: torch.Tensor,  # (B, H, T, D)
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,  # (B, H, T, D) of the WHOLE softmax, not of this part
    total: torch.Tensor,  # (B, H, T) log-sum-exp of the whole softmax, in this part's logits
    mask: torch.Tensor | None,
    causal: bool,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value through one part of a split softmax (CPU)."""
    heads, kv_heads = query.shape[1], key.shape[1]
    if mask is not None:
        mask = mask.to(query.dtype).expand(query.shape[0], 1, query.shape[2], key.shape[2])
    d_query, d_key, d_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, query, _repeat(key, query), _repeat(value, query), out, total, 0.0, causal,
        attn_mask=mask, scale=scaling,
    )  # fmt: skip
    if heads != kv_heads:
        shape = (key.shape[0], kv_heads, heads // kv_heads, *key.shape[2:])
        d_key, d_value = d_key.view(shape).sum(2), d_value.view(shape).sum(2)
    return d_query, d_key, d_value


def _repeat(x: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    groups = query.shape[1] // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scaling: float,
) -> Pair:
    batch, heads, queries, dim = query.shape
    kv_heads = key.shape[1]
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if queries == 1 and heads != kv_heads:
        # One decoded token: the heads of a group become queries of one head, so that keys and
        # values are read once and not repeated.
        packed = query.reshape(batch, kv_heads, heads // kv_heads, dim)
        wide = mask if mask is None else mask.expand(-1, -1, heads // kv_heads, -1)
        out, total = fused(packed, key, value, 0.0, False, attn_mask=wide, scale=scaling)
        return out.reshape(batch, heads, 1, dim), total.reshape(batch, heads, 1)
    out, total = fused(
        query,
        _repeat(key, query),
        _repeat(value, query),
        0.0,
        causal,
        attn_mask=mask,
        scale=scaling,
    )
    return out, total.view(batch, heads, queries)


def _cuda_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scaling: float,
) -> Pair:
    out, total, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        query, _repeat(key, query), _repeat(value, query), 0.0, causal, scale=scaling
    )
    return out, total[..., : query.shape[2]].float()


def _cuda_efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scaling: float,
) -> Pair:
    bias = None
    if mask is not None:
        # The kernel wants rows aligned to 16 elements: allocate wide, hand over a slice.
        keys = key.shape[2]
        room = mask.new_zeros(*mask.shape[:-1], -(-keys // 16) * 16)
        room[..., :keys] = mask
        bias = room[..., :keys].expand(-1, query.shape[1], -1, -1)
    out, total, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, _repeat(key, query), _repeat(value, query), bias, True, 0.0, causal, scale=scaling
    )
    return out, total[..., : query.shape[2]].float()


@cache
def _kernel(device: str, dtype: torch.dtype, dim: int, masked: bool) -> Kernel:
    """The first fused kernel that agrees with `plain` here; chosen once per combination."""
    candidates: dict[str, list[Kernel]] = {
        "cpu": [_cpu],
        "cuda": [_cuda_efficient] if masked else [_cuda_flash, _cuda_efficient],
    }
    for kernel in candidates.get(device, []):
        if _agrees(kernel, device, dtype, dim, masked):
            return kernel
    _log.info("no fused attention for %s %s head_dim %d: using plain torch", device, dtype, dim)
    return plain


@torch.no_grad()
def _agrees(kernel: Kernel, device: str, dtype: torch.dtype, dim: int, masked: bool) -> bool:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 5, 5, True), (2, 4, 1, 37, False), (2, 4, 3, 37, False)]  # B, H, T, N, causal
    for batch, heads, queries, keys, causal in shapes:
        query = torch.randn(batch, heads, queries, dim, generator=generator).to(device, dtype)
        key = torch.randn(batch, 2, keys, dim, generator=generator).to(device, dtype)
        value = torch.randn(batch, 2, keys, dim, generator=generator).to(device, dtype)
        mask = None
        if masked:
            causal = False
            mask = torch.zeros(batch, 1, queries, keys, device=device, dtype=dtype)
            mask[1, ..., keys // 2 :] = float("-inf")
        try:
            got = kernel(query, key, value, mask, causal, dim**-0.5)
        except (RuntimeError, NotImplementedError):
            return False
        want = plain(query, key, value, mask, causal, dim**-0.5)
        tolerance = _TOLERANCE.get(dtype, 5e-2)
        if not all(
            torch.allclose(a.float(), b.float(), atol=tolerance)
            for a, b in zip(got, want, strict=True)
        ):
            return False
    return True
