"""memlong-agent: persistent key/value memory for local language models.

`from memlong_agent import MemLong` is the front door. Names load on first use, so that importing
the package costs no torch and no pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memlong_agent.errors import (
        ArchiveError,
        ConfigError,
        ContextOverflowError,
        IncompatibleMemoryError,
        MemLongError,
        MemoryNotFoundError,
        StoreCorruptError,
        StoreError,
        StoreKeyError,
        StoreLockedError,
        StoreVersionError,
        UnsupportedModelError,
    )
    from memlong_agent.memlong import MemLong, Memories, Session, Stream
    from memlong_agent.records import (
        Exported,
        Forgotten,
        Memory,
        Rebuilt,
        Recall,
        Reply,
        Restored,
        ToolCall,
        Usage,
    )

__version__ = "0.1.0"
__all__ = [
    "ArchiveError",
    "ConfigError",
    "ContextOverflowError",
    "Exported",
    "Forgotten",
    "IncompatibleMemoryError",
    "MemLong",
    "MemLongError",
    "Memories",
    "Memory",
    "MemoryNotFoundError",
    "Rebuilt",
    "Recall",
    "Reply",
    "Restored",
    "Session",
    "StoreCorruptError",
    "StoreError",
    "StoreKeyError",
    "StoreLockedError",
    "StoreVersionError",
    "Stream",
    "ToolCall",
    "UnsupportedModelError",
    "Usage",
]
_ROOMS = {
    "memlong": ("MemLong", "Memories", "Session", "Stream"),
    "records": (
        "Exported",
        "Forgotten",
        "Memory",
        "Rebuilt",
        "Recall",
        "Reply",
        "Restored",
        "ToolCall",
        "Usage",
    ),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'memlong_agent' has no attribute {name!r}")
    room = importlib.import_module(f"memlong_agent.{_HOME.get(name, 'errors')}")
    return getattr(room, name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
