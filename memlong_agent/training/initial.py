"""A start from which copying is learned in minutes: the circuit is there, weak, before step 1.

In a small decoder, "find where this token stood before and say what followed" (an induction head;
Olsson et al. 2022) forms by itself only after a long plateau: here 600 steps of 32 windows showed
none. So its three parts are added to the random weights, as mimetic initialization does for
vision (Trockman & Kolter 2023), and everything stays free to train:

1. layer 0, head 0 looks at the previous token and writes a sketch of it beside the token's own;
2. the memory layer's keys read that sketch, and the queries of the memory layer and of its readers
   read the current token's: a query finds the keys whose previous token is its own;
3. values and outputs are transposes of one orthogonal matrix: what is found is said.

Letters: d hidden size, D head dimension, S sketch dimensions.
"""

from __future__ import annotations

from typing import Any

import torch

from memlong_agent.layout import MemoryLayout

_CONSTANT = 0.06  # in dimension 0 of every embedding (their scale is 0.02): the sign of "a token"
_PREVIOUS = 2.0  # previous-token logit: 3.4 above the neighbors
_SKETCH_IN, _SKETCH_OUT = 0.25, 0.25
_MATCH = 1.4
_QUIET = 0.25  # GPT-2's 1 / sqrt(2 L), rounded
_COPY = 0.17  # value and output scale: one reader adds 0.6 of an embedding


@torch.no_grad()
def add_copy_circuit(lm: Any, layout: MemoryLayout, seed: int) -> None:
    """Add the circuit to a fresh float32 Llama, in place; layer 0 must lie below m."""
    generator = torch.Generator().manual_seed(seed)
    decoder = lm.get_decoder()
    d, head_dim = lm.config.hidden_size, decoder.layers[0].self_attn.head_dim
    turns = decoder.rotary_emb.inv_freq  # (D / 2,) radians a position
    decoder.embed_tokens.weight[:, 0] = _CONSTANT
    for layer in decoder.layers:  # random writing would bury the sketch (norm 0.4) under 1.3
        layer.self_attn.o_proj.weight *= _QUIET
        layer.mlp.down_proj.weight *= _QUIET
    slow = (
        (turns < 0.01).nonzero().flatten()
    )  # hardly turned within a window: content may stand here
    slow = torch.cat([slow, slow + head_dim // 2])  # (S,)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]  # (d, d)
    read, write = basis[: len(slow)], basis[:, -len(slow) :]  # (S, d), (d, S)
    read = read.clone()
    read[:, 0] = 0.0  # not the constant
    _previous_token(decoder.layers[0].self_attn, turns, read, write)
    values = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    memory_layer = layout.memory_layers[-1]
    for index in {memory_layer, *layout.retrieval_layers}:
        attention = decoder.layers[index].self_attn
        for head in range(lm.config.num_attention_heads):
            attention.q_proj.weight[head * head_dim + slow] += _MATCH * read
        attention.o_proj.weight += _COPY * values.T
    stored = decoder.layers[memory_layer].self_attn
    for head in range(lm.config.num_key_value_heads):
        stored.k_proj.weight[head * head_dim + slow] += _MATCH * write.T
    stored.v_proj.weight += _COPY * values
    for index in set(layout.retrieval_layers) - {memory_layer}:  # the same for their local keys
        own = decoder.layers[index].self_attn
        own.k_proj.weight += stored.k_proj.weight
        own.v_proj.weight += _COPY * values


def _previous_token(
    attention: Any, turns: torch.Tensor, read: torch.Tensor, write: torch.Tensor
) -> None:
    """Head 0: query u and key R(1) u meet fully at distance 1, on the fast frequencies."""
    half = len(turns)
    fast = turns > 0.3
    attention.q_proj.weight[:half, 0] += _PREVIOUS * fast
    attention.k_proj.weight[:half, 0] += _PREVIOUS * fast * turns.cos()
    attention.k_proj.weight[half : 2 * half, 0] += _PREVIOUS * fast * turns.sin()
    sketch = len(read)
    attention.v_proj.weight[:sketch] = _SKETCH_IN * read
    attention.o_proj.weight[:, :sketch] = _SKETCH_OUT * write
