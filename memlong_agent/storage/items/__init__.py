"""Items: JSON values under a namespace and a key, kept beside the memories.

In: a tenant, namespaces (tuples of labels), keys, values, vectors of their texts. Out: the same, as
plain frozen records. An item may be bound to the memory that holds its text for recall: it is
deleted with a memory that is forgotten, and stays, unbound, when the memory is evicted. Knows no
embedder, no filter and no framework. An expired item is never given out.
"""

from memlong_agent.storage.items.rows import Binding, Namespace, NewItem, StoredItem
from memlong_agent.storage.items.store import ItemStore

__all__ = ["Binding", "ItemStore", "Namespace", "NewItem", "StoredItem"]
