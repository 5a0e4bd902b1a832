"""The front door: `MemLong`, its sessions and their memories, in text and messages."""

from memlong_agent.memlong.background import BackgroundStream, background
from memlong_agent.memlong.items import Items
from memlong_agent.memlong.memlong import MemLong
from memlong_agent.memlong.memories import Memories
from memlong_agent.memlong.session import Session
from memlong_agent.memlong.shared import shared
from memlong_agent.memlong.stream import Stream

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
