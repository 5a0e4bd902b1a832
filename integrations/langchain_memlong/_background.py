"""Whole replies and running streams, waited for by a thread or by an event loop.

In: a stream, or a function that makes one. Out: its reply, or the stream running on memlong-agent's
shared threads. The first call of a process imports torch, which takes seconds: that too happens on
another thread than the event loop's.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import lru_cache
from typing import TYPE_CHECKING

from memlong_agent.records import Reply

if TYPE_CHECKING:
    from memlong_agent import Stream
    from memlong_agent.memlong import BackgroundStream


def finished(stream: Stream) -> Reply:
    """The reply of a stream, made on this thread."""
    try:
        for _ in stream:
            pass
    finally:
        stream.close()
    return stream.reply


async def awaited(make: Callable[[], Stream]) -> Reply:
    """The reply of a stream, made in the background; cancelling the task cancels the reply."""
    stream = await started(make)
    try:
        async for _ in stream:
            pass
    finally:
        await stream.aclose()
    return stream.reply


async def started(make: Callable[[], Stream]) -> BackgroundStream:
    """The stream, running. Close it with `aclose` when no more pieces are wanted."""
    imported = _imported()
    if not imported.done():
        await asyncio.wrap_future(imported)
    from memlong_agent.memlong import background

    return background(make())


@lru_cache(maxsize=1)
def _imported() -> Future[None]:
    """The import of memlong_agent.memlong, begun once, on a thread of its own."""
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()  # one waiter's cancellation must not cancel the others'

    def load() -> None:
        try:
            importlib.import_module("memlong_agent.memlong")
        except BaseException as exc:
            done.set_exception(exc)
        else:
            done.set_result(None)

    threading.Thread(target=load, name="memlong-import").start()
    return done
