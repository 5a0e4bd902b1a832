"""The encoding identity: what a chunk's K/V depend on, and nothing else.

In: a model, its tokenizer, the version of the text format. Out: an :class:`Identity` of named
parts. Left out on purpose: layers above the memory layers, gates, positions, head, chat template,
device and library versions. They may change, and a bank stays valid. A part may be added (banks of
before are completed when they are opened), but what a part is made from may not change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
import xxhash
from transformers import PreTrainedTokenizerBase

from memlong_agent.identity import Identity
from memlong_agent.model.seam import MemoryModel

_READ_BY_KV = ("input_layernorm", "self_attn.k_proj", "self_attn.v_proj", "self_attn.k_norm")
_SETTINGS = ("rms_norm_eps", "hidden_act", "num_attention_heads")  # of layers, beside weights
_ORIGINAL = "original_max_position_embeddings"
_TOKENIZER_PARTS = ("model", "normalizer", "pre_tokenizer", "added_tokens")


def encoding_identity(
    model: MemoryModel, tokenizer: PreTrainedTokenizerBase, text_format: str
) -> Identity:
    """Named parts of what K/V depend on. Reads every weight up to the highest memory layer once.

    At memory speed: 0.5 s for the lower half of a 4B model, so the digest is not cached.
    """
    config = model.lm.config
    quantization = getattr(config, "quantization_config", None)
    rope = getattr(config, "rope_parameters", None) or {}
    return Identity(
        {
            "weights up to the memory layer": _weights_digest(model),
            "tokenizer": _tokenizer_digest(tokenizer),
            "RoPE": json.dumps(rope, sort_keys=True, default=str),
            "memory layers": ",".join(map(str, model.layout.memory_layers)),
            "text format": text_format,
            "compute dtype": str(model.lm.dtype).removeprefix("torch."),
            "layer settings": _settings(model),
            "first token": str(tokenizer.bos_token_id),
            "quantization": "none" if quantization is None else _digest(str(quantization)),
        }
    )


def _settings(model: MemoryModel) -> str:
    """What a layer computes beside its weights, as JSON. Models without adapters have no part."""
    config = model.lm.config
    found = {name: getattr(config, name, None) for name in _SETTINGS}
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default" and _ORIGINAL not in rope:
        found[_ORIGINAL] = config.max_position_embeddings  # what scaled RoPE then goes by
    if adapters := _adapters(model):
        found["adapters"] = _digest(json.dumps(adapters))
    return json.dumps(found, sort_keys=True, default=str)


def _weights_digest(model: MemoryModel) -> str:
    hasher = xxhash.xxh3_128()
    for name, tensor in _tensors(model):
        hasher.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _adapters(model: MemoryModel) -> list[tuple[str, list[str], str, bool]]:
    """How PEFT's layers use their weights: which adapters are on, and how strongly."""
    return [
        (
            f"{name}.{inner}",
            list(part.active_adapters),
            str(getattr(part, "scaling", None)),
            bool(part.disable_adapters),
        )
        for name, module in _modules(model)
        for inner, part in module.named_modules()
        if hasattr(part, "active_adapters")
    ]


def _tensors(model: MemoryModel) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in _modules(model):
        for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
            if isinstance(tensor, torch.Tensor):
                yield from _plain(f"{prefix}.{name}", tensor)


def _plain(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensor, or the plain ones that a quantised one is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from _plain(f"{name}.{part}", getattr(tensor, part))


def _modules(model: MemoryModel) -> Iterator[tuple[str, torch.nn.Module]]:
    """What K/V of the memory layers are computed by."""
    decoder = model.decoder
    yield "embed_tokens", decoder.embed_tokens
    wanted = model.layout.memory_layers
    for index in range(wanted[-1] + 1):
        layer, name = decoder.layers[index], f"layers.{index}"
        if index < wanted[-1]:
            yield name, layer
            continue
        for part in _READ_BY_KV:
            module = layer
            for step in part.split("."):
                module = getattr(module, step, None)
            if module is not None:
                yield f"{name}.{part}", module


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Over what decides token ids; a re-saved tokenizer has the same."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _digest(json.dumps(tokenizer.get_vocab(), sort_keys=True))
    whole = json.loads(backend.to_str())
    return _digest(json.dumps([whole.get(part) for part in _TOKENIZER_PARTS], sort_keys=True))


def _digest(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())
