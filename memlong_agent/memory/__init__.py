"""The memory bank: joins storage, vector index and embedder; knows no model.

Import from here: the rest of the folder is this room's own business.
"""

from memlong_agent.memory.bank import MemoryBank
from memlong_agent.memory.carriers import (
    Draft,
    Hit,
    Written,
    chunk_vectors,
    embedded_parts,
    mean_vectors,
    recall_record,
)
from memlong_agent.memory.evict import victims
from memlong_agent.memory.items import Accept, ItemBank, item_vectors
from memlong_agent.memory.limits import check_text, within_document
from memlong_agent.memory.recall import log_priors

__all__ = [
    "Accept",
    "Draft",
    "Hit",
    "ItemBank",
    "MemoryBank",
    "Written",
    "check_text",
    "chunk_vectors",
    "embedded_parts",
    "item_vectors",
    "log_priors",
    "mean_vectors",
    "recall_record",
    "victims",
    "within_document",
]
