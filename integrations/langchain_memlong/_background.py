"""Whole replies, waited for by a thread or by an event loop.

In: a stream that has not begun. Out: its reply. Torch and weights load where the stream runs: with
the first call, on the caller's thread or on one of memlong-agent's shared ones.
"""

from __future__ import annotations

from memlong_agent.memlong import Stream, background
from memlong_agent.records import Reply


def finished(stream: Stream) -> Reply:
    """The reply of a stream, made on this thread."""
    try:
        for _ in stream:
            pass
    finally:
        stream.close()
    return stream.reply


async def awaited(stream: Stream) -> Reply:
    """The reply of a stream, made in the background; cancelling the task cancels the reply."""
    running = background(stream)
    try:
        async for _ in running:
            pass
    finally:
        await running.aclose()
    return running.reply
