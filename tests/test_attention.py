"""Fusion against a dense reference, gradients against autograd, kernels against the definition."""

from __future__ import annotations

import pytest
import torch

from memlong_agent import lse
from memlong_agent.attention import PlacedKV, joint, merged

B, H, T, M, D, SCALING = 2, 4, 7, 11, 16, 0.25


def _tensors(kv_heads: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(B, H, T, D), (B, kv_heads, T, D), (B, kv_heads, T, D)]
    shapes += [(B, kv_heads, M, D), (B, kv_heads, M, D), (H,)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def _dense_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    gate: torch.Tensor,
) -> torch.Tensor:
    """One head and one query at a time, as the paper's code does, `+ g_h` on memory logits."""
    out = torch.zeros(B, H, T, D)
    group = H // key.shape[1]
    for b in range(B):
        for h in range(H):
            for i in range(T):
                q, n = query[b, h, i], h // group
                mem = keys[b, n] @ q * SCALING + gate[h]
                local = key[b, n, : i + 1] @ q * SCALING
                weights = torch.softmax(torch.cat([mem, local]), dim=0)
                out[b, h, i] = weights @ torch.cat([values[b, n], value[b, n, : i + 1]])
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_fusion_equals_the_dense_reference(kv_heads: int) -> None:
    tensors = [tensor.detach() for tensor in _tensors(kv_heads)]
    query, key, value, keys, values, gate = tensors
    got, weight = merged(query, key, value, PlacedKV(keys, values), gate, None, True, SCALING)
    assert (got - _dense_reference(*tensors)).abs().max() <= 1e-5
    assert bool(((weight > 0) & (weight < 1)).all())


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_gradients_of_two_parts_equal_those_of_one_softmax(kv_heads: int, padded: bool) -> None:
    tensors = _tensors(kv_heads)
    query, key, value, keys, values, gate = tensors
    padding = torch.zeros(B, 1, 1, M)
    padding[1, ..., 5:] = float("-inf")
    placed = PlacedKV(keys, values, padding if padded else None)
    direction = torch.randn(B, H, T, D, generator=torch.Generator().manual_seed(4))
    outs = [f(query, key, value, placed, gate, None, True, SCALING)[0] for f in (merged, joint)]
    two, one = (torch.autograd.grad((out * direction).sum(), tensors) for out in outs)
    assert (outs[0] - outs[1]).abs().max() <= 1e-5
    for mine, oracle in zip(two, one, strict=True):
        assert (mine - oracle).abs().max() <= 1e-5


def test_a_row_without_memory_in_a_batch_gets_plain_attention() -> None:
    """The CPU kernel reports lse 0 for a query that sees nothing; weight would be far from 0."""
    query, key, value, keys, values, gate = (tensor.detach() for tensor in _tensors(4))
    padding = torch.zeros(B, 1, 1, M)
    padding[1] = float("-inf")
    got, weight = merged(
        query, key, value, PlacedKV(keys, values, padding), gate, None, True, SCALING
    )
    alone, _ = lse.attend(query, key, value, None, True, SCALING)
    assert torch.equal(got[1], alone[1])
    assert bool((weight[1] == 0).all()) and bool((weight[0] > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("queries", [1, 5])
def test_fused_kernels_agree_with_the_definition(dtype: torch.dtype, queries: int) -> None:
    generator = torch.Generator().manual_seed(5)
    query = torch.randn(2, 4, queries, 32, generator=generator).to(dtype)
    key, value = (torch.randn(2, 2, 19, 32, generator=generator).to(dtype) for _ in range(2))
    got, want = (f(query, key, value, None, False, 0.2) for f in (lse.attend, lse.plain))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for mine, oracle in zip(got, want, strict=True):
        assert (mine.float() - oracle.float()).abs().max() <= tolerance


def test_differing_batches_are_refused_before_a_kernel_reads_out_of_bounds() -> None:
    query, key = torch.zeros(3, 2, 1, 8), torch.zeros(1, 2, 4, 8)
    with pytest.raises(ValueError, match="batch sizes differ"):
        lse.attend(query, key, key, None, False, 1.0)
