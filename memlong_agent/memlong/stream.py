"""A reply while it is made, and the order of turns in one session."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Hashable, Iterator
from contextlib import contextmanager

from memlong_agent.errors import MemLongError
from memlong_agent.records import Reply

_LOOK_S = 0.1  # how often a turn that waits for another looks whether it was cancelled


class Stream(Iterator[str]):
    """Pieces of reply text. After the last one, `reply` holds the whole :class:`Reply`.

    The turn is written before the iteration ends; until then the session's next turn waits. Closing
    the stream, from any thread, or dropping it, cancels the turn: work stops within one token and
    nothing is written.
    """

    def __init__(
        self, pieces: Generator[str, None, Reply], *, lane: Hashable | None = None
    ) -> None:
        self.lane = lane
        """Streams of one lane wait for each other; None waits for none."""
        self._pieces = pieces
        self._reply: Reply | None = None
        self._cancelled = False
        self._stepping = threading.Lock()

    def __next__(self) -> str:
        while not (piece := self.step()):
            pass
        return piece

    def step(self) -> str:
        """One token's work: the text that became certain, often none. StopIteration at the end."""
        with self._stepping:
            if self._cancelled:
                self._pieces.close()
            try:
                return next(self._pieces)
            except StopIteration as end:
                if end.value is not None:
                    self._reply = end.value
                raise

    def cancel(self) -> None:
        """Ask whoever iterates to stop before the next token. Waits for nothing."""
        self._cancelled = True

    def close(self) -> None:
        """Cancel the turn; harmless when it has ended."""
        self.cancel()
        if self._stepping.acquire(blocking=False):  # else the thread that is in it will look
            try:
                self._pieces.close()
            finally:
                self._stepping.release()

    @property
    def reply(self) -> Reply:
        """The finished reply. Raises MemLongError before the end and after a cancellation."""
        if self._reply is None:
            raise MemLongError("The reply is not finished. Iterate the stream to its end first.")
        return self._reply


class FairLock:
    """A lock that is given in the order of asking; `threading.Lock` promises no order."""

    def __init__(self) -> None:
        self._guard = threading.RLock()  # a dropped generator may let go while another asks
        self._waiting: deque[threading.Event] = deque()

    def run(self, pieces: Generator[str, None, Reply]) -> Generator[str, None, Reply]:
        """The pieces, under the lock; blank ones while it waits, so that a cancellation is seen."""
        with self._queued() as turn:
            while not turn.wait(_LOOK_S):
                yield ""
            return (yield from pieces)

    @contextmanager
    def _queued(self) -> Iterator[threading.Event]:
        """A place in the queue, given up at the end; its event is set when it is the first."""
        ticket = threading.Event()
        with self._guard:
            self._waiting.append(ticket)
            self._waiting[0].set()
        try:
            yield ticket
        finally:
            with self._guard:
                self._waiting.remove(ticket)
                if self._waiting:
                    self._waiting[0].set()
