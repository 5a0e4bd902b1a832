"""One `MemLong` for everybody in the process who asks for the same model, bank and options.

In: the arguments of `MemLong`. Out: the one that was made of them, loaded by the first who asks;
the others wait. A closed one is made anew. The first call imports torch, which takes seconds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memlong_agent.memlong.memlong import MemLong

_GUARD = threading.Lock()
_SHELVES: dict[Hashable, _Shelf] = {}


class _Shelf:
    """Room for one; its own lock, so that loading one model holds up nobody with another."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.guard = threading.Lock()
        self.options = options  # kept, so that no other object gets the id of one of them
        self.memlong: MemLong | None = None


def shared(
    model: str | Path | None = None, bank: str | Path | None = None, **options: Any
) -> MemLong:
    """The process's one `MemLong(model, bank, **options)`; raises what that raises.

    Whoever closes it closes it for all; the next call opens it again.
    """
    from memlong_agent.memlong.memlong import MemLong

    key = (_model(model), _bank(bank), _frozen(options))
    with _GUARD:
        shelf = _SHELVES.setdefault(key, _Shelf(options))
    with shelf.guard:
        if shelf.memlong is None or shelf.memlong.closed:
            shelf.memlong = MemLong(model, bank, **options)
        return shelf.memlong


def _model(name: str | Path | None) -> str | None:
    """A folder under one name, however it was written; a name of the Hub as it is."""
    if name is None:
        return None
    return os.path.realpath(name) if os.path.exists(name) else str(name)


def _bank(path: str | Path | None) -> str | None:
    """A folder under one name, also before the bank is made there."""
    if path is None or str(path) == ":memory:":
        return None if path is None else str(path)
    return os.path.realpath(os.path.expanduser(path))


def _frozen(value: Any) -> Hashable:
    """Something to look up by; what cannot be compared stands for itself only."""
    if isinstance(value, Mapping):
        return frozenset((name, _frozen(each)) for name, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(_frozen(each) for each in value)
    try:
        hash(value)
    except TypeError:
        return id(value)
    return (type(value), value)
