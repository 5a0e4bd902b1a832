"""memlong-agent for LangChain and LangGraph.

Names load on first use; neither importing this package nor constructing its classes loads torch.
Without the extra, the first use says what to install.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from memlong_agent import __version__
from memlong_agent.errors import ConfigError

if TYPE_CHECKING:
    from langchain_memlong.chat_models import ChatMemLong
    from langchain_memlong.llms import MemLongLLM
    from langchain_memlong.middleware import MemLongMiddleware
    from langchain_memlong.retrievers import MemLongRetriever
    from langchain_memlong.stores import MemLongStore

_HOME = {
    "ChatMemLong": "chat_models",
    "MemLongLLM": "llms",
    "MemLongMiddleware": "middleware",
    "MemLongRetriever": "retrievers",
    "MemLongStore": "stores",
}
__all__ = [
    "ChatMemLong",
    "MemLongLLM",
    "MemLongMiddleware",
    "MemLongRetriever",
    "MemLongStore",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'langchain_memlong' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"langchain_memlong.{_HOME[name]}")
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in ("langchain", "langchain_core", "langgraph"):
            raise
        raise ConfigError(
            f"{name} needs {exc.name}, which is not installed. "
            'Run: pip install "memlong-agent[langchain]"'
        ) from exc
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
