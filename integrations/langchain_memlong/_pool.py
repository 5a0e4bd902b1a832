"""Two threads for work on the bank that an event loop must not wait for.

In: a function. Out: its result, awaited. Not asyncio's default executor: that one grows with the
processors and belongs to the application.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


async def in_pool(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """`work(*args, **kwargs)` on one of two threads."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_pool(), lambda: work(*args, **kwargs))


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, thread_name_prefix="langchain-memlong")
