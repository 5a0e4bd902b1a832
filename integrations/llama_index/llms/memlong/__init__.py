"""LlamaIndex on a local model that remembers: `MemLongLLM` and `MemLongMemoryBlock`.

Importing this loads LlamaIndex, but neither torch nor a model; without LlamaIndex one sentence says
what to install.
"""

from __future__ import annotations

try:
    import llama_index.core  # noqa: F401  # probed here, so that the sentence below is the error
except ModuleNotFoundError as missing:
    if missing.name not in ("llama_index", "llama_index.core"):
        raise
    raise ModuleNotFoundError(
        'llama_index.llms.memlong needs LlamaIndex. Run: pip install "memlong-agent[llama-index]"',
        name=missing.name,
    ) from None

from llama_index.llms.memlong.base import MemLongLLM
from llama_index.llms.memlong.block import MemLongMemoryBlock

__all__ = ["MemLongLLM", "MemLongMemoryBlock"]
