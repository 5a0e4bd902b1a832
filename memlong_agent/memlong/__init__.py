"""The front door: `MemLong`, its sessions and their memories, in text and messages.

Streams and their shared threads come without torch, so that an event loop may import them; torch
loads with the first name that needs a model, on the thread that asks for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from memlong_agent.memlong.background import BackgroundStream, background
from memlong_agent.memlong.shared import shared
from memlong_agent.memlong.stream import Stream

if TYPE_CHECKING:
    from memlong_agent.memlong.items import Items
    from memlong_agent.memlong.memlong import MemLong
    from memlong_agent.memlong.memories import Memories
    from memlong_agent.memlong.session import Session

__all__ = [
    "BackgroundStream",
    "Items",
    "MemLong",
    "Memories",
    "Session",
    "Stream",
    "background",
    "shared",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'memlong_agent.memlong' has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{name.lower()}"), name)
