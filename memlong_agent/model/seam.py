"""One decoder with a memory: encode chunks to K/V, place recalled K/V, run forward.

In: a stock transformers causal LM of a supported family, token ids, recalled chunks. Out: logits,
K/V chunks. Refuses to know text, banks and sampling. Weights are only read, every request carries
its own memory, so threads may share one model.

Letters: B batch, T tokens, L_mem memory layers, H_kv key/value heads, C chunk tokens, M recalled
tokens, D head dimension, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from memlong_agent.attention import PlacedKV, RecalledMemory, memory_attention
from memlong_agent.config import PositionPolicy
from memlong_agent.kv import KVChunk, KVSpec
from memlong_agent.layout import MemoryLayout
from memlong_agent.rope import memory_positions, rotate, window_start

ATTENTION = "memlong_sdpa"
ENCODE_TOKENS = 8192  # tokens per batch while encoding; bounds memory
# Batches are this many tokens wide and rows high, or a multiple: on a CPU each new shape makes
# oneDNN compile kernels and keep them, up to a thousand.
ENCODE_STEP = 16


def register_attention() -> None:
    """Make `attn_implementation="memlong_sdpa"` known to transformers; safe to repeat.

    The mask must be registered under the same name: otherwise transformers builds none and
    padding is silently ignored (logits off by 0.99 in our trial).
    """
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]
    AttentionInterface.register(ATTENTION, partial(memory_attention, stock))
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where recalled keys and the live window stand."""

    policy: PositionPolicy
    memory_span: int  # most tokens ever recalled at once
    window_tokens: int

    @property
    def start(self) -> int:
        """Position of the first token of the live window."""
        return window_start(self.policy, self.memory_span, self.window_tokens)


@dataclass(frozen=True)
class MemoryModel:
    """A causal LM, its layout and its gates. Made by :func:`memlong_agent.model.load_model`."""

    lm: PreTrainedModel
    layout: MemoryLayout
    gates: Mapping[int, torch.Tensor] = field(default_factory=dict)  # retrieval layer -> (H,)

    def __post_init__(self) -> None:
        register_attention()
        if self.lm.config._attn_implementation != ATTENTION:
            self.lm.set_attn_implementation(ATTENTION)

    @property
    def spec(self) -> KVSpec:
        """Shape and dtype of every chunk that this model writes."""
        config = self.lm.config
        return KVSpec(
            self.layout.memory_layers, config.num_key_value_heads, self.head_dim, self.lm.dtype
        )

    @property
    def head_dim(self) -> int:
        config = self.lm.config
        return int(
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )

    @property
    def device(self) -> torch.device:
        return torch.device(self.decoder.embed_tokens.weight.device)

    @property
    def decoder(self) -> Any:
        """The stack of layers below the head."""
        return self.lm.get_decoder()  # type: ignore[no-untyped-call]

    def new_cache(self) -> DynamicCache:
        """An empty cache for one live window."""
        return DynamicCache(config=self.lm.config)

    def project(self, ids: torch.Tensor) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Keys (before RoPE) and values of every memory layer for `ids` `(B, T)`.

        Stops after the highest memory layer's projections: no upper layer, no head, no memory.
        Each value is a pair of `(B, H_kv, T, D)`. Differentiable; training and inference share it.
        """
        decoder = self.decoder
        hidden = decoder.embed_tokens(ids)  # (B, T, hidden)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        tables = decoder.rotary_emb(hidden, positions)
        wanted = self.layout.memory_layers
        found = {}
        for index in range(wanted[-1] + 1):
            layer = decoder.layers[index]
            if index in wanted:
                found[index] = _project(layer, hidden, self.head_dim)
            if index < wanted[-1]:
                hidden = layer(
                    hidden, attention_mask=None, position_ids=positions, position_embeddings=tables
                )
        return found

    @torch.no_grad()
    def encode(self, chunks: Sequence[Sequence[int]], preamble: Sequence[int]) -> list[KVChunk]:
        """K/V of each chunk, in order: `[preamble][chunk]` at positions 0.., preamble dropped.

        Batched by length; padding stands right of the tokens, where causal attention is blind.
        """
        order = sorted(range(len(chunks)), key=lambda i: len(chunks[i]))
        done: dict[int, KVChunk] = {}
        widths = [-(-(len(preamble) + len(chunk)) // ENCODE_STEP) * ENCODE_STEP for chunk in chunks]
        for rows in _batches(order, widths):
            ids = torch.zeros(len(rows), widths[rows[-1]], dtype=torch.long)
            for row, i in enumerate(rows):
                ids[row, : len(preamble) + len(chunks[i])] = torch.tensor([*preamble, *chunks[i]])
            pairs = self.project(ids.to(self.device))
            keys = torch.stack([pairs[layer][0] for layer in self.layout.memory_layers], 1)
            values = torch.stack([pairs[layer][1] for layer in self.layout.memory_layers], 1)
            for row, i in enumerate(rows):  # keys: (B, L_mem, H_kv, T, D)
                span = slice(len(preamble), len(preamble) + len(chunks[i]))
                done[i] = KVChunk(
                    keys[row, :, :, span].cpu().contiguous(),
                    values[row, :, :, span].cpu().contiguous(),
                )
        return [done[i] for i in range(len(chunks))]

    def recall(
        self,
        chunks: Sequence[KVChunk],
        placement: Placement,
        *,
        log_priors: Sequence[float] = (),
        trace_chunks: bool = False,
    ) -> RecalledMemory | None:
        """Chunks in time order, placed for one request; None when there are none.

        `log_priors` gives each chunk what is added to the logits of its keys, in nats; none is 0
        for all. Raises ValueError when there are neither none nor as many as chunks.
        """
        if len(log_priors) not in (0, len(chunks)):
            raise ValueError(f"{len(log_priors)} log-priors for {len(chunks)} chunks")
        if not chunks:
            return None
        bias = None
        if any(log_priors):
            pairs = zip(chunks, log_priors, strict=True)
            of_keys = [prior for chunk, prior in pairs for _ in range(chunk.tokens)]  # (M,)
            bias = torch.tensor(of_keys, dtype=self.lm.dtype, device=self.device)[None, None, None]
        keys = torch.cat([chunk.keys for chunk in chunks], dim=2).to(
            self.device
        )  # (L_mem, H_kv, M, D)
        values = torch.cat([chunk.values for chunk in chunks], dim=2).to(self.device)
        positions = memory_positions(placement.policy, keys.shape[2], placement.start)
        placed = self.place(
            keys[:, None], values[:, None], torch.tensor([positions], device=self.device), bias
        )
        return RecalledMemory(
            placed, self.gates, tuple(chunk.tokens for chunk in chunks), trace_chunks=trace_chunks
        )

    def place(
        self,
        keys: torch.Tensor,  # (L_mem, B, H_kv, M, D), before RoPE
        values: torch.Tensor,  # (L_mem, B, H_kv, M, D)
        positions: torch.Tensor,  # (B or 1, M)
        bias: torch.Tensor | None = None,  # (B, 1, 1, M) additive
    ) -> dict[int, PlacedKV]:
        """What each retrieval layer reads: keys at `positions`, by the model's own rotary."""
        cos, sin = self.decoder.rotary_emb(keys[0].float(), positions)  # (B or 1, M, D)
        placed: dict[int, PlacedKV] = {}
        for index, memory_layer in enumerate(self.layout.memory_layers):
            part = PlacedKV(rotate(keys[index], cos, sin), values[index], bias)
            placed |= dict.fromkeys(self.layout.readers[memory_layer], part)
        return placed

    def forward(
        self,
        ids: torch.Tensor,  # (B, T)
        start: int,
        *,
        memory: RecalledMemory | None = None,
        cache: Any = None,
        last_only: bool = False,
    ) -> torch.Tensor:
        """Logits `(B, T, V)`, or `(B, 1, V)` with `last_only`, of tokens at positions `start ...`.

        `cache` is a transformers `Cache` that already holds the tokens before these.
        """
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
        result = self.lm(
            input_ids=ids,
            position_ids=positions.expand(ids.shape[0], -1),
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=1 if last_only else 0,
            memory=memory,
        )
        logits: torch.Tensor = result.logits
        return logits


def _project(layer: Any, hidden: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    shape = (*normed.shape[:2], -1, head_dim)
    keys = attention.k_proj(normed).view(shape)  # (B, T, H_kv, D)
    if hasattr(attention, "k_norm"):
        keys = attention.k_norm(keys)
    values = attention.v_proj(normed).view(shape)
    return keys.transpose(1, 2), values.transpose(1, 2)  # (B, H_kv, T, D)


def _batches(order: Sequence[int], widths: Sequence[int]) -> list[list[int]]:
    """Rows sorted by length, cut before rows x widest passes ENCODE_TOKENS.

    More than ENCODE_STEP rows are a multiple of it; what is over goes with the next ones.
    """
    batches: list[list[int]] = []
    rows: list[int] = []
    for row in order:
        while rows and (len(rows) + 1) * widths[row] > ENCODE_TOKENS:
            batches.append(rows[: _whole(rows)])
            rows = rows[_whole(rows) :]
        rows.append(row)
    while rows:
        batches.append(rows[: _whole(rows)])
        rows = rows[_whole(rows) :]
    return batches


def _whole(rows: Sequence[int]) -> int:
    return len(rows) - len(rows) % ENCODE_STEP or len(rows)
