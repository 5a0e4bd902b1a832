"""Streams that run on a few shared threads, for callers that must not wait: event loops above all.

In: a stream that has not begun. Out: its pieces, handed over as they come, to a plain loop or to an
async one. At most four threads work for the whole process, and they end when nothing is left to do.
Streams of one lane run one after the other, in the order in which they were handed in.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import suppress
from functools import partial

from memlong_agent.memlong.stream import Stream
from memlong_agent.records import Reply

MAX_THREADS = 4


class BackgroundStream(Iterator[str], AsyncIterator[str]):
    """Pieces of a reply that is made on another thread; `reply` after the last one.

    Use `for` or `async for`; an error of the turn is raised there. Closing or dropping it, or
    cancelling the task that waits for it, cancels the turn within one token: nothing is written.
    """

    def __init__(self, job: _Job) -> None:
        self._job = job
        # Only a flag: a garbage collection may come while its thread holds any lock.
        weakref.finalize(self, job.stream.cancel)

    def __next__(self) -> str:
        try:
            return self._job.wait()
        except BaseException:
            self.close()
            raise

    async def __anext__(self) -> str:
        try:
            piece = await self._job.wait_async()
        except BaseException:
            self.close()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    @property
    def reply(self) -> Reply:
        """The finished reply. Raises MemLongError before the end and after a cancellation."""
        return self._job.stream.reply

    def close(self) -> None:
        """Cancel the turn and return at once; harmless when it has ended."""
        self._job.cancel()

    async def aclose(self) -> None:
        """Cancel the turn and wait, without holding up the event loop, until its work has ended."""
        self.close()
        await self._job.ended_async()


def background(stream: Stream) -> BackgroundStream:
    """Run a stream that has not begun on one of at most four shared threads, from now on."""
    job = _Job(stream)
    _WORKERS.add(job)
    return BackgroundStream(job)


class _Job:
    """One stream, what it has said that nobody has taken yet, and who waits for more."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._pieces: deque[str] = deque()  # unbounded: a reply ends at max_tokens
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], object]] = []
        self._ended = False
        self._error: BaseException | None = None

    def run(self) -> None:
        """On a worker: to the end, to an error, or to the first token after a cancellation."""
        error: BaseException | None = None
        try:
            while True:
                if piece := self.stream.step():
                    self._tell(piece)
        except StopIteration:
            pass
        except BaseException as exc:  # whatever it is, it is the consumer's to handle
            error = exc
        self._tell(None, error)

    def cancel(self) -> None:
        """Stop before the next token; if it has not begun, at once."""
        self.stream.cancel()
        if _WORKERS.remove(self):
            self._tell(None)

    def wait(self) -> str:
        """The next piece; StopIteration at the end, the turn's error where it failed."""
        with self._changed:
            self._changed.wait_for(self._ready)
            piece = self._take()
        if piece is None:
            raise StopIteration
        return piece

    async def wait_async(self) -> str | None:
        """The next piece; None at the end, the turn's error where it failed."""
        while True:
            with self._changed:
                if self._ready():
                    return self._take()
                told = self._waker()
            await told.wait()

    async def ended_async(self) -> None:
        """Wait until no thread works on it."""
        while True:
            with self._changed:
                if self._ended:
                    return
                told = self._waker()
            await told.wait()

    def _waker(self) -> asyncio.Event:
        """An event of the running loop that the next piece, or the end, sets from its thread."""
        told = asyncio.Event()
        self._wakers.append(partial(asyncio.get_running_loop().call_soon_threadsafe, told.set))
        return told

    def _ready(self) -> bool:
        return bool(self._pieces) or self._ended

    def _take(self) -> str | None:
        if self._pieces:
            return self._pieces.popleft()
        if self._error is not None:
            raise self._error
        return None

    def _tell(self, piece: str | None, error: BaseException | None = None) -> None:
        with self._changed:
            if piece is None:
                self._ended, self._error = True, error
            else:
                self._pieces.append(piece)
            wakers, self._wakers = self._wakers, []
            self._changed.notify_all()
        for wake in wakers:
            with suppress(RuntimeError):  # the event loop that waited is closed
                wake()


class _Workers:
    """At most `MAX_THREADS` threads, made when there is work and gone when there is none."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._busy: set[Hashable] = set()  # lanes
        self._threads = 0

    def add(self, job: _Job) -> None:
        with self._guard:
            self._waiting.append(job)
            if self._threads == MAX_THREADS:
                return
            self._threads += 1
        threading.Thread(target=self._work, name="memlong-stream").start()

    def remove(self, job: _Job) -> bool:
        """Whether the job was still waiting; then it never runs."""
        with self._guard:
            waits = job in self._waiting
            if waits:
                self._waiting.remove(job)
            return waits

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.run()
            finally:
                with self._guard:
                    self._busy.discard(job.stream.lane)

    def _next(self) -> _Job | None:
        """The oldest job whose lane is free. None ends the thread: a lane's own thread goes on."""
        with self._guard:
            for job in self._waiting:
                if job.stream.lane is None or job.stream.lane not in self._busy:
                    self._waiting.remove(job)
                    self._busy.add(job.stream.lane)
                    return job
            self._threads -= 1
            return None


_WORKERS = _Workers()
