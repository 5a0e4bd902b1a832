"""Banks on disk and in memory: rows, K/V files and the word index, kept in step.

Import from here: the rest of the folder is this room's own business. contract.py says what
a bank promises.
"""

from memlong_agent.storage.archive import Counted, Manifest
from memlong_agent.storage.base import (
    ChunkAge,
    Event,
    LexicalHit,
    NewChunk,
    NewMemory,
    OldChunk,
    Owner,
    OwnerStats,
    RecallMark,
    StoredChunk,
    StoredMemory,
    Swept,
)
from memlong_agent.storage.conversion import change_key, encrypt
from memlong_agent.storage.items import Binding, ItemStore, Namespace, NewItem, StoredItem
from memlong_agent.storage.keys import Key, key_from, needed_key
from memlong_agent.storage.rebuilding import Old, Rebuilding
from memlong_agent.storage.sql import Storage
from memlong_agent.storage.upgrade import Upgraded, upgrade
from memlong_agent.storage.upkeep import Condition

__all__ = [
    "Binding",
    "ChunkAge",
    "Condition",
    "Counted",
    "Event",
    "ItemStore",
    "Key",
    "LexicalHit",
    "Manifest",
    "Namespace",
    "NewChunk",
    "NewItem",
    "NewMemory",
    "Old",
    "OldChunk",
    "Owner",
    "OwnerStats",
    "Rebuilding",
    "RecallMark",
    "Storage",
    "StoredChunk",
    "StoredItem",
    "StoredMemory",
    "Swept",
    "Upgraded",
    "change_key",
    "encrypt",
    "key_from",
    "needed_key",
    "upgrade",
]
