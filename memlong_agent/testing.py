"""Small real checkpoints for tests of memlong-agent and of code that uses it. Nothing downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from memlong_agent.config import PositionPolicy
from memlong_agent.layout import MemoryLayout
from memlong_agent.model.load import write_sidecar
from memlong_agent.training.tokenizer import train_tokenizer

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
_FAMILIES: dict[Family, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
_TEXTS = (
    "My dog is called Rex. What is my dog called?",
    "User: hello\nAssistant: Noted.",
    "Earlier conversation:",
)


def tiny_checkpoint(
    folder: Path,
    family: Family = "llama",
    *,
    layout: MemoryLayout | None = None,
    policy: PositionPolicy = "zero",
    layers: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """Save a random 4-layer model of 64 dimensions with a 320-token tokenizer; returns `folder`.

    With `layout` a `memlong.json` is written, with gates at 0; without, it is a stock checkpoint.
    `config` overrides fields of the family's transformers config.
    """
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(_TEXTS * 3, vocabulary=320)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **config,
    }
    make_config, make_model = _FAMILIES[family]
    model = make_model(make_config(**shape)).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if layout is not None:
        gates = {
            layer: torch.zeros(shape["num_attention_heads"]) for layer in layout.retrieval_layers
        }
        write_sidecar(folder, layout, gates, policy)
    return folder
