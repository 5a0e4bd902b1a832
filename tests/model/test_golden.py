"""The prefix oracle: recall everything, place it where it was, and nothing has changed.

All K/V of a 64-token prefix go through the seam; the remaining 32 tokens run alone with that
memory. Their logits must equal those of the full-context run of the untouched model.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from memlong_agent.attention import RecalledMemory
from memlong_agent.kv import KVChunk
from memlong_agent.layout import MemoryLayout
from memlong_agent.model import MemoryModel, Placement

LAYERS, PREFIX, TOTAL = 4, 64, 96
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "max_position_embeddings": 4096,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 1024,
    "rope_theta": 10000.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
    "rope_theta": 500000.0,
}
FAMILIES: dict[str, Callable[[int], PreTrainedModel]] = {
    "llama": lambda kv: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=kv)),
    "llama-llama3": lambda kv: LlamaForCausalLM(
        LlamaConfig(**SHAPE, num_key_value_heads=kv, rope_parameters=LLAMA3)
    ),
    "llama-yarn": lambda kv: LlamaForCausalLM(
        LlamaConfig(**SHAPE, num_key_value_heads=kv, rope_parameters=YARN)
    ),
    "mistral": lambda kv: MistralForCausalLM(
        MistralConfig(**SHAPE, num_key_value_heads=kv, sliding_window=None)
    ),
    "qwen2": lambda kv: Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_key_value_heads=kv)),
    "qwen3": lambda kv: Qwen3ForCausalLM(Qwen3Config(**SHAPE, num_key_value_heads=kv, head_dim=16)),
}
EVERY_LAYER = MemoryLayout("per-layer", {layer: (layer,) for layer in range(LAYERS)})


@pytest.fixture(params=[(name, kv) for name in FAMILIES for kv in (2, 8)], ids=str)
def stock(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny random model, grouped-query (2) or multi-head (8), with biases where they belong."""
    torch.manual_seed(7)
    name, kv_heads = request.param
    model = FAMILIES[name](kv_heads).eval()
    for parameter in model.parameters():  # Qwen2's biases start at zero: make them count
        if parameter.dim() == 1:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def _ids(rows: int = 2) -> torch.Tensor:
    return torch.randint(3, 500, (rows, TOTAL), generator=torch.Generator().manual_seed(1))


def _prefix_memory(model: MemoryModel, ids: torch.Tensor) -> RecalledMemory:
    pairs = model.project(ids[:, :PREFIX])
    keys = torch.stack([pairs[layer][0] for layer in model.layout.memory_layers])
    values = torch.stack([pairs[layer][1] for layer in model.layout.memory_layers])
    return RecalledMemory(model.place(keys, values, torch.arange(PREFIX)[None]))


@torch.no_grad()
def test_recalling_everything_equals_the_full_context(stock: PreTrainedModel) -> None:
    ids = _ids()
    want = stock(ids).logits[:, PREFIX:]
    model = MemoryModel(stock, EVERY_LAYER)
    got = model.forward(ids[:, PREFIX:], PREFIX, memory=_prefix_memory(model, ids))
    alone = model.forward(ids[:, PREFIX:], PREFIX)
    assert (got - want).abs().max() <= 1e-5
    assert (alone - want).abs().max() > 1e-2, "without memory the oracle must be missed"


@torch.no_grad()
def test_decoding_token_by_token_equals_the_full_context(stock: PreTrainedModel) -> None:
    ids = _ids()
    want = stock(ids).logits[:, PREFIX:]
    model = MemoryModel(stock, EVERY_LAYER)
    memory, cache = _prefix_memory(model, ids), DynamicCache(config=stock.config)
    steps = [
        model.forward(ids[:, at : at + 1], at, memory=memory, cache=cache)
        for at in range(PREFIX, TOTAL)
    ]
    assert (torch.cat(steps, dim=1) - want).abs().max() <= 1e-5


@torch.no_grad()
def test_contiguous_placement_of_encoded_chunks_equals_the_full_context(
    stock: PreTrainedModel,
) -> None:
    ids = _ids(rows=1)
    want = stock(ids).logits[:, PREFIX:]
    model = MemoryModel(stock, EVERY_LAYER)
    chunk = model.encode([ids[0, :PREFIX].tolist()], preamble=[])
    placement = Placement("contiguous", memory_span=PREFIX, window_tokens=256)
    memory = model.recall(chunk, placement)
    assert (
        model.forward(ids[:, PREFIX:], placement.start, memory=memory) - want
    ).abs().max() <= 1e-5


@torch.no_grad()
def test_a_log_prior_is_worth_as_many_copies_of_its_chunk(stock: PreTrainedModel) -> None:
    """Logits + log 3 on a chunk's keys: in a softmax the same as the chunk three times."""
    ids = _ids(rows=1)
    model, placement = MemoryModel(stock, EVERY_LAYER), Placement("zero", PREFIX, 256)
    first, second = model.encode([ids[0, :40].tolist(), ids[0, 40:PREFIX].tolist()], preamble=[])

    def logits(chunks: list[KVChunk], log_priors: list[float]) -> torch.Tensor:
        memory = model.recall(chunks, placement, log_priors=log_priors)
        return model.forward(ids[:, PREFIX:], placement.start, memory=memory)

    want = logits([first, first, first, second], [])
    assert (logits([first, second], [math.log(3), 0.0]) - want).abs().max() <= 1e-5
    assert (logits([first, second], [0.0, 0.0]) - want).abs().max() > 1e-3
    alone = logits([second], [])
    assert (logits([first, second], [-1e4, 0.0]) - alone).abs().max() <= 1e-5


@torch.no_grad()
def test_no_memory_is_bit_identical_to_the_stock_model(stock: PreTrainedModel) -> None:
    ids = _ids()
    want = stock(ids).logits
    model = MemoryModel(stock, EVERY_LAYER)
    closed = {layer: torch.full((8,), float("-inf")) for layer in range(LAYERS)}
    memory = RecalledMemory(_prefix_memory(model, ids).layers, closed)
    assert torch.equal(model.forward(ids, 0), want)
    assert torch.equal(model.forward(ids, 0, memory=RecalledMemory({})), want)
    assert torch.equal(model.forward(ids, 0, memory=memory), want)


@torch.no_grad()
def test_one_closed_head_agrees_with_a_model_without_that_heads_memory(
    stock: PreTrainedModel,
) -> None:
    """Seven heads at -inf and one where sigmoid underflows: the two-part path runs, weight 0."""
    ids = _ids()
    model = MemoryModel(stock, EVERY_LAYER)
    layers = {0: _prefix_memory(model, ids).layers[0]}
    nearly = torch.full((8,), float("-inf"))
    nearly[0] = -1e4  # sigmoid underflows to 0, but the two-part path runs
    got = model.forward(ids, PREFIX, memory=RecalledMemory(layers, {0: nearly}))
    assert (got - model.forward(ids, PREFIX)).abs().max() <= 1e-5
