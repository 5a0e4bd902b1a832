"""From a hub name or a folder to a :class:`MemoryModel`, or one sentence why not.

The configuration is read and checked before any weight is downloaded or read. A folder with a
`memlong.json` (written by `memlong train`) brings its layout and gates; a stock checkpoint gets the
training-free per-layer layout.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from memlong_agent.config import PositionPolicy
from memlong_agent.errors import ConfigError, UnsupportedModelError
from memlong_agent.layout import LayoutName, MemoryLayout
from memlong_agent.model.seam import ATTENTION, MemoryModel, register_attention

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
SIDECAR = "memlong.json"
_GUARD = threading.Lock()
_LOADING: dict[str, threading.Lock] = {}  # one each, so that loading one holds up no other
_IN_USE: WeakValueDictionary[str, Any] = WeakValueDictionary()  # models that some bank reads
_MOVING_ROPE = ("dynamic", "longrope")  # change their frequencies with the length


def load_model(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    **model_kwargs: Any,
) -> tuple[MemoryModel, Tokenizer, PositionPolicy]:
    """Model, tokenizer and default position policy of a checkpoint.

    Weights that are in use in this process already are not loaded again: they are only read, so
    any number of banks may share them. Files that changed meanwhile are loaded.

    `device` defaults to CUDA when there is one; `dtype` to the checkpoint's own. `model_kwargs`
    (`device_map`, `quantization_config`, `revision`, `trust_remote_code`) go to transformers.
    Raises UnsupportedModelError for unknown names and architectures without full attention.
    """
    if "attn_implementation" in model_kwargs:
        raise ConfigError(
            "attn_implementation is memlong-agent's own: memory is read inside the attention. "
            "Leave it out of model_kwargs."
        )
    hub = {
        key: model_kwargs[key] for key in ("revision", "trust_remote_code") if key in model_kwargs
    }
    config = _read(AutoConfig, name, **hub)
    check_supported(config, str(name))
    register_attention()
    key = repr((_version_of(name), device, str(dtype), sorted(model_kwargs.items(), key=str)))
    with _GUARD:
        loading = _LOADING.setdefault(key, threading.Lock())
    with loading:
        lm = _IN_USE.get(key)
        if lm is None:
            lm = _weights(name, config, device, dtype, model_kwargs)
            _IN_USE[key] = lm
    sidecar = read_sidecar(Path(name)) if Path(name).is_dir() else {}
    layout, gates, policy = _memory_of(sidecar, config, lm.device)
    return MemoryModel(lm, layout, gates), _read(AutoTokenizer, name, **hub), policy


def _weights(
    name: str | Path,
    config: PreTrainedConfig,
    device: str | None,
    dtype: torch.dtype | str | None,
    model_kwargs: Mapping[str, Any],
) -> Any:
    lm = _read(
        AutoModelForCausalLM,
        name,
        config=config,
        dtype=dtype or "auto",
        attn_implementation=ATTENTION,
        **model_kwargs,
    )
    if "device_map" not in model_kwargs:
        lm = _moved(lm, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return lm.eval().requires_grad_(False)


def _version_of(name: str | Path) -> object:
    """A hub name, or a folder with the sizes and times of its files."""
    folder = Path(name)
    if not folder.is_dir():
        return str(name)
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    return str(folder.resolve()), [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def check_supported(config: PreTrainedConfig, name: str) -> None:
    """Raise UnsupportedModelError unless the architecture can be given a memory."""
    family = config.model_type
    if family not in SUPPORTED:
        raise UnsupportedModelError(
            f"{name} is a {family!r} model, which memlong-agent cannot give a memory. "
            f"Use one of these families: {', '.join(SUPPORTED)}."
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in _MOVING_ROPE:
        raise UnsupportedModelError(
            f"{name} uses {rope!r} RoPE, whose frequencies change with the length, so recalled "
            "keys cannot be placed. Use a checkpoint with default, linear, llama3 or yarn RoPE."
        )


def sliding_window(config: PreTrainedConfig) -> int | None:
    """The window of a model whose every layer slides; None when some layer sees everything."""
    return None if full_attention_layers(config) else int(config.sliding_window)


def full_attention_layers(config: PreTrainedConfig) -> list[int]:
    """Layers that attend to the whole context, 0-indexed."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    slides = getattr(config, "sliding_window", None) is not None
    return [] if slides else list(range(config.num_hidden_layers))


def read_sidecar(folder: Path) -> dict[str, Any]:
    """`memlong.json` of a checkpoint folder, {} when absent; ConfigError when it is not JSON."""
    path = folder / SIDECAR
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as exc:
        raise ConfigError(
            f"{path} is not valid JSON ({exc}). Train again or restore the file."
        ) from exc
    if problem := _sidecar_problem(found):
        raise ConfigError(f"{path} cannot be used: {problem}. Train again or restore the file.")
    return dict(found)


def _sidecar_problem(found: Any) -> str | None:
    """Why this is not what :func:`write_sidecar` writes; None if it is."""
    if not isinstance(found, dict) or set(found) != {"layout", "readers", "gates", "position"}:
        return "it has not the fields layout, readers, gates and position, and no others"
    known = get_args(LayoutName), get_args(PositionPolicy)
    if found["layout"] not in known[0] or found["position"] not in known[1]:
        return "its layout or position is unknown"
    readers, gates = found["readers"], found["gates"]
    if not all(isinstance(each, dict) and all(map(_is_layer, each)) for each in (readers, gates)):
        return "readers or gates are not by layer"
    if not readers or not all(
        isinstance(some, list) and some and all(_is_layer(str(layer)) for layer in some)
        for some in readers.values()
    ):
        return "readers are not lists of layers"
    if not all(isinstance(gate, list) and all(map(_is_gate, gate)) for gate in gates.values()):
        return "a gate is not a list of numbers"
    return None


def _is_layer(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 6


def _is_gate(value: Any) -> bool:
    return type(value) in (int, float) and (abs(value) < 1e30 or value == -math.inf)  # closed


def write_sidecar(
    folder: Path, layout: MemoryLayout, gates: Mapping[int, torch.Tensor], policy: PositionPolicy
) -> None:
    """Record layout, gates and position policy beside the weights."""
    record = {
        "layout": layout.name,
        "readers": {str(layer): list(readers) for layer, readers in layout.readers.items()},
        "gates": {str(layer): gate.float().tolist() for layer, gate in gates.items()},
        "position": policy,
    }
    (folder / SIDECAR).write_text(json.dumps(record, indent=1) + "\n")


def _memory_of(
    sidecar: Mapping[str, Any], config: PreTrainedConfig, device: torch.device
) -> tuple[MemoryLayout, dict[int, torch.Tensor], PositionPolicy]:
    if not sidecar:
        eligible = full_attention_layers(config) or range(config.num_hidden_layers)
        return MemoryLayout.per_layer(config.num_hidden_layers, list(eligible)), {}, "contiguous"
    readers = {int(layer): tuple(read) for layer, read in sidecar["readers"].items()}
    gates = {
        int(layer): torch.tensor([float(each) for each in gate], device=device)
        for layer, gate in sidecar["gates"].items()
    }
    highest = max((*readers, *gates, *(layer for read in readers.values() for layer in read)))
    if highest >= config.num_hidden_layers:
        raise ConfigError(
            f"{SIDECAR} names layer {highest}, but the model has {config.num_hidden_layers}. Train "
            "again or restore the file."
        )
    return MemoryLayout(sidecar["layout"], readers), gates, sidecar["position"]


def _moved(lm: Any, device: str) -> Any:
    try:
        return lm.to(device)
    except (RuntimeError, AssertionError) as exc:  # unknown device, no driver, not enough memory
        reason = str(exc).strip().splitlines()[0].rstrip(".")
        raise ConfigError(
            f"The model cannot be moved to device {device!r}: {reason}. Use another device."
        ) from exc


def _read(auto: Any, name: str | Path, **kwargs: Any) -> Any:
    try:
        return auto.from_pretrained(str(name), **kwargs)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        raise UnsupportedModelError(
            f"Cannot load the model {str(name)!r}: {reason} Give a folder with config.json and "
            "safetensors weights, or the name of a Hugging Face model that can be downloaded."
        ) from exc
