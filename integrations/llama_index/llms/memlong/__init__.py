"""LlamaIndex on a local model that remembers: `MemLongLLM` and `MemLongMemoryBlock`.

Names load on first use; neither importing this nor constructing its classes loads torch. Without
LlamaIndex the first use says what to install.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from memlong_agent import ConfigError

if TYPE_CHECKING:
    from llama_index.llms.memlong.base import MemLongLLM
    from llama_index.llms.memlong.block import MemLongMemoryBlock

__all__ = ["MemLongLLM", "MemLongMemoryBlock"]
_HOME = {"MemLongLLM": "base", "MemLongMemoryBlock": "block"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_HOME[name]}")
    except ModuleNotFoundError as exc:
        if not (exc.name or "").startswith("llama_index.core"):
            raise
        raise ConfigError(
            f"{name} needs LlamaIndex, which is not installed. "
            'Run: pip install "memlong-agent[llama-index]"'
        ) from exc
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
