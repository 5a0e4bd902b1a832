"""One softmax over recalled and local keys, computed in two parts: the paper's mathematics.

In: queries, local keys and values as transformers hands them to an attention function, and the
request's :class:`RecalledMemory`. Out: the attention output, and how much of it came from memory.
Knows no model, no bank and no position: keys arrive rotated.

The two parts are merged by their log-sum-exp with a per-head log-gate g (0 = plain joint softmax,
-inf = no memory): `w = sigmoid(lse_mem + g - lse_local)`, `out = local + w * (mem - local)`.
MemLong's public code multiplies logits by its gate instead, which halves every pretrained logit.

Letters: B batch, H query heads, H_kv key/value heads, T queries, N local keys, M recalled tokens,
D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from memlong_agent import lse

StockAttention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True, slots=True)
class PlacedKV:
    """Recalled K/V of one memory layer, rotated for their place in this request."""

    keys: torch.Tensor  # (B, H_kv, M, D)
    values: torch.Tensor  # (B, H_kv, M, D)
    bias: torch.Tensor | None = None  # (B, 1, 1, M) additive: a chunk's log-prior, -inf padding

    def __post_init__(self) -> None:
        if self.keys.dim() != 4 or self.keys.shape != self.values.shape:
            raise ValueError(f"keys {self.keys.shape} and values {self.values.shape} must agree")


@dataclass(slots=True)
class RecalledMemory:
    """Everything one request recalls: passed as `memory=` to the model, never stored on it.

    `layers` maps a retrieval layer to what it reads; `gates` to its log-gates `(H,)`, absent = 0.
    A layer whose gates are all -inf is dropped here, so that it runs the stock attention.
    """

    layers: Mapping[int, PlacedKV]
    gates: Mapping[int, torch.Tensor] = field(default_factory=dict)
    chunk_tokens: tuple[int, ...] = ()
    trace_chunks: bool = False
    mass: dict[int, torch.Tensor] = field(default_factory=dict)  # layer -> (B, T) of the last call
    chunk_mass: dict[int, torch.Tensor] = field(default_factory=dict)  # layer -> (B, chunks)

    def __post_init__(self) -> None:
        closed = {
            layer
            for layer, gate in self.gates.items()
            if not gate.requires_grad and bool(torch.isneginf(gate).all())
        }
        self.layers = {
            layer: placed
            for layer, placed in self.layers.items()
            if layer not in closed and placed.keys.shape[2] > 0
        }

    def last_token_mass(self) -> torch.Tensor:
        """Attention mass on memory of the last query, mean over heads and layers: `(B,)`."""
        return torch.stack([mass[:, -1] for mass in self.mass.values()]).mean(0)

    def last_token_chunk_mass(self) -> torch.Tensor:
        """The same by chunk, `(B, chunks)`; needs `trace_chunks` during the call."""
        return torch.stack(list(self.chunk_mass.values())).mean(0)


def memory_attention(
    stock: StockAttention,
    module: torch.nn.Module,
    query: torch.Tensor,  # (B, H, T, D)
    key: torch.Tensor,  # (B, H_kv, N, D)
    value: torch.Tensor,  # (B, H_kv, N, D)
    attention_mask: torch.Tensor | None,  # (B or 1, 1, T, N) bool or additive
    *,
    scaling: float,
    memory: RecalledMemory | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """An attention function for `transformers.AttentionInterface`; returns `(B, T, H, D)`, None.

    Without memory for this layer it is `stock`, bit for bit. `dropout` is ignored on memory.
    """
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    placed = memory.layers.get(layer) if memory is not None else None
    if memory is None or placed is None:
        return stock(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    causal = attention_mask is None and query.shape[2] > 1
    if causal:
        # No mask and several queries means "causal from the first key": a static cache hands over
        # its whole buffer, of which only the first T rows are filled.
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    gate = memory.gates.get(layer)
    if gate is None:
        gate = torch.zeros(query.shape[1], dtype=torch.float32, device=query.device)
    placed = _like_batch(placed, query)
    out, weight = merged(
        query, key, value, placed, gate, _additive(attention_mask, query), causal, scaling
    )
    _record(memory, layer, query, placed, weight, scaling)
    return out.transpose(1, 2).contiguous(), None


def merged(
    query: torch.Tensor,  # (B, H, T, D)
    key: torch.Tensor,  # (B, H_kv, N, D)
    value: torch.Tensor,  # (B, H_kv, N, D)
    placed: PlacedKV,
    gate: torch.Tensor,  # (H,)
    mask: torch.Tensor | None,  # (B or 1, 1, T, N) additive
    causal: bool,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over memory and local keys: output `(B, H, T, D)` and memory weight `(B, H, T)`.

    Differentiable in everything; without gradients only fused kernels run.
    """
    needs_grad = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (query, key, value, placed.keys, placed.values, gate)
    )
    if needs_grad and lse.has_backward(query):
        out, weight = _TwoParts.apply(  # type: ignore[no-untyped-call]
            query,
            key,
            value,
            placed.keys,
            placed.values,
            gate,
            placed.bias,
            mask,
            causal,
            scaling,
        )
        return out, weight
    if needs_grad:
        return joint(query, key, value, placed, gate, mask, causal, scaling)
    local, lse_local = lse.attend(query, key, value, mask, causal, scaling)
    recalled, lse_mem = lse.attend(query, placed.keys, placed.values, placed.bias, False, scaling)
    return _merge(local, lse_local, recalled, lse_mem, gate)


def joint(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    placed: PlacedKV,
    gate: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in one softmax over `[memory | local]`, in plain torch: 2.4x slower, any device."""
    batch, heads, queries, _ = query.shape
    recalled, local = placed.keys.shape[2], key.shape[2]
    bias = gate.float().view(1, heads, 1, 1).expand(batch, heads, queries, recalled)
    if placed.bias is not None:
        bias = bias + placed.bias.float()
    here = torch.zeros(1, 1, queries, local, device=query.device) if mask is None else mask.float()
    if causal:
        here = here.masked_fill(torch.ones_like(here, dtype=torch.bool).triu(1), float("-inf"))
    bias = torch.cat([bias, here.expand(batch, heads, queries, local)], dim=-1)  # (B, H, T, M+N)
    groups = heads // key.shape[1]
    keys = torch.cat([placed.keys, key], dim=2).repeat_interleave(groups, dim=1)  # (B, H, M+N, D)
    values = torch.cat([placed.values, value], dim=2).repeat_interleave(groups, dim=1)
    logits = (query @ keys.transpose(-1, -2)).float() * scaling + bias  # (B, H, T, M+N)
    weights = F.softmax(logits, dim=-1)
    return weights.to(values.dtype) @ values, weights[..., :recalled].sum(-1)


class _TwoParts(torch.autograd.Function):
    """Gradients by two flash backward calls under the global log-sum-exp (ring attention's rule).

    A call with the global lse treats the other part as already normalised away; the memory part
    sees `lse - g`, since its logits carry the gate. 2.4x faster than `joint` at T=1024, M=2048.
    """

    @staticmethod
    def forward(ctx, query, key, value, keys, values, gate, bias, mask, causal, scaling):  # type: ignore[no-untyped-def]
        local, lse_local = lse.attend(query, key, value, mask, causal, scaling)
        recalled, lse_mem = lse.attend(query, keys, values, bias, False, scaling)
        out, weight = _merge(local, lse_local, recalled, lse_mem, gate)
        gated = lse_mem + gate.float().view(1, -1, 1)
        total = torch.logaddexp(lse_local, gated)
        ctx.save_for_backward(
            query,
            key,
            value,
            keys,
            values,
            gate,
            bias,
            mask,
            out,
            total,
            weight,
            local,
            recalled,
        )
        ctx.causal, ctx.scaling = causal, scaling
        ctx.mark_non_differentiable(weight)
        return out, weight

    @staticmethod
    def backward(ctx, grad_out, _grad_weight):  # type: ignore[no-untyped-def]
        (
            query,
            key,
            value,
            keys,
            values,
            gate,
            bias,
            mask,
            out,
            total,
            weight,
            local,
            recalled,
        ) = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        d_query, d_key, d_value = lse.attend_backward(
            grad_out, query, key, value, out, total, mask, ctx.causal, ctx.scaling
        )
        d_query_mem, d_keys, d_values = lse.attend_backward(
            grad_out,
            query,
            keys,
            values,
            out,
            total - gate.float().view(1, -1, 1),
            bias,
            False,
            ctx.scaling,
        )
        change = (grad_out * (torch.nan_to_num(recalled) - local)).sum(-1).float()  # (B, H, T)
        d_gate = (change * weight * (1 - weight)).sum((0, 2)).to(gate.dtype)
        return (
            d_query + d_query_mem,
            d_key,
            d_value,
            d_keys,
            d_values,
            d_gate,
            None,
            None,
            None,
            None,
        )


def _merge(
    local: torch.Tensor,
    lse_local: torch.Tensor,
    recalled: torch.Tensor,
    lse_mem: torch.Tensor,
    gate: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.sigmoid(lse_mem + gate.float().view(1, -1, 1) - lse_local)  # (B, H, T)
    # A row without any visible key has lse -inf, weight 0 and an undefined output: 0 * nan is nan.
    recalled = torch.nan_to_num(recalled)
    return local + weight.unsqueeze(-1).to(local.dtype) * (recalled - local), weight


def _additive(mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))


def _like_batch(placed: PlacedKV, query: torch.Tensor) -> PlacedKV:
    """Memory of one request serves every row of its batch (beams): expanded, never copied."""
    batch = query.shape[0]
    if placed.keys.shape[0] == batch:
        return placed
    if placed.keys.shape[0] != 1:
        raise ValueError(f"memory for {placed.keys.shape[0]} rows against {batch} queries")
    bias = placed.bias
    return PlacedKV(
        placed.keys.expand(batch, -1, -1, -1),
        placed.values.expand(batch, -1, -1, -1),
        bias if bias is None else bias.expand(batch, -1, -1, -1),
    )


@torch.no_grad()
def _record(
    memory: RecalledMemory,
    layer: int,
    query: torch.Tensor,
    placed: PlacedKV,
    weight: torch.Tensor,
    scaling: float,
) -> None:
    memory.mass[layer] = weight.detach().mean(1)  # (B, T)
    if not memory.trace_chunks:
        return
    groups = query.shape[1] // placed.keys.shape[1]
    last = query[:, :, -1:].float()  # (B, H, 1, D)
    keys = placed.keys.repeat_interleave(groups, dim=1).float()  # (B, H, M, D)
    logits = (last @ keys.transpose(-1, -2)).squeeze(2) * scaling  # (B, H, M)
    if placed.bias is not None:
        logits = logits + placed.bias[:, 0].float()
    share = (F.softmax(logits, dim=-1) * weight[:, :, -1:]).mean(1)  # (B, M)
    parts = torch.split(share, list(memory.chunk_tokens), dim=-1)
    memory.chunk_mass[layer] = torch.stack([part.sum(-1) for part in parts], dim=-1)
