"""A stock model and ours over the same weights, for timings only: the weights are random.

In: a shape and a device. Out: two models that share every parameter, and memory of a given length;
or a folder with a tiny model, where only the bank is measured. Nothing is downloaded.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from benchmarks.timing import Action, nothing
from memlong_agent.attention import RecalledMemory
from memlong_agent.kv import KVChunk
from memlong_agent.layout import MemoryLayout
from memlong_agent.model import MemoryModel, Placement
from memlong_agent.testing import tiny_checkpoint

CHUNK_TOKENS = 128  # the default of the library


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Llama; the default has 221M parameters, input and output embeddings shared."""

    hidden: int = 1024
    layers: int = 16
    heads: int = 16
    kv_heads: int = 8
    intermediate: int = 2816
    vocabulary: int = 32_000


LLAMA_221M = Shape()


@dataclass(frozen=True, slots=True)
class Twins:
    """Stock transformers with sdpa, and ours with the `memlong` layout, over the same weights."""

    stock: PreTrainedModel
    ours: MemoryModel

    @property
    def settle(self) -> Action:
        """Waits until the device is done."""
        return torch.cuda.synchronize if self.ours.device.type == "cuda" else nothing

    def describe(self) -> str:
        millions = sum(each.numel() for each in self.stock.parameters()) / 1e6
        dtype = str(self.stock.dtype).removeprefix("torch.")
        return f"random Llama of {millions:.3g}M parameters, {dtype}, {self.ours.device}"


@lru_cache(maxsize=1)
def twins(device: str, shape: Shape) -> Twins:
    """Both models in bfloat16 on `device`, gates at 0, seed 0; the last pair made is kept."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    stock = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    stock = stock.to(device).eval().requires_grad_(False)
    # Everything is copied but the parameters: the configs must differ, the weights must not.
    twin = copy.deepcopy(stock, {id(each): each for each in stock.parameters()})
    layout = MemoryLayout.memlong(shape.layers)
    gates = {layer: torch.zeros(shape.heads, device=device) for layer in layout.retrieval_layers}
    return Twins(stock, MemoryModel(twin, layout, gates))


def random_memory(model: MemoryModel, placement: Placement) -> RecalledMemory:
    """`placement.memory_span` recalled tokens in chunks of 128, traced as the engine does."""
    spec = model.spec
    chunks = []
    for start in range(0, placement.memory_span, CHUNK_TOKENS):
        tokens = min(CHUNK_TOKENS, placement.memory_span - start)
        shape = (len(spec.layers), spec.kv_heads, tokens, spec.head_dim)
        chunks.append(KVChunk(torch.randn(shape).to(spec.dtype), torch.randn(shape).to(spec.dtype)))
    memory = model.recall(chunks, placement, trace_chunks=True)
    assert memory is not None  # the span is at least one token
    return memory


def random_ids(model: MemoryModel, tokens: int) -> list[int]:
    """Evenly drawn token ids."""
    return torch.randint(model.lm.config.vocab_size, (tokens,)).tolist()


def tiny_model(folder: Path) -> Path:
    """A checkpoint with one memory layer of 2 K/V heads of 16 dimensions; returns its folder.

    Its tokenizer makes a token of nearly every character.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]
    return tiny_checkpoint(folder, layout=MemoryLayout.memlong(4), dtype=torch.bfloat16)
