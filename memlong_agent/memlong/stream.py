"""A reply while it is made, and the order of turns in one session."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Hashable, Iterator
from contextlib import contextmanager, suppress

from memlong_agent.errors import MemLongError
from memlong_agent.records import Reply


class Stream(Iterator[str]):
    """Pieces of reply text. After the last one, `reply` holds the whole :class:`Reply`.

    The turn is written before the iteration ends. Closing the stream, from any thread, or dropping
    it, cancels the turn: work stops within one token and nothing is written.
    """

    def __init__(
        self, pieces: Generator[str, None, Reply], *, lane: Hashable | None = None
    ) -> None:
        self.lane = lane
        """Streams of one lane wait for each other; None waits for none."""
        self._pieces = pieces
        self._reply: Reply | None = None
        self._closed = False

    def __next__(self) -> str:
        while not (piece := self.step()):
            pass
        return piece

    def step(self) -> str:
        """One token's work: the text that became certain, often none. StopIteration at the end."""
        if self._closed:
            self._pieces.close()
        try:
            return next(self._pieces)
        except StopIteration as end:
            if end.value is not None:
                self._reply = end.value
            raise

    def close(self) -> None:
        """Cancel the turn; harmless when it has ended."""
        self._closed = True
        # The generator refuses while another thread is in it; that thread looks before each step.
        with suppress(ValueError):
            self._pieces.close()

    @property
    def reply(self) -> Reply:
        """The finished reply. Raises MemLongError before the end and after a cancellation."""
        if self._reply is None:
            raise MemLongError("The reply is not finished. Iterate the stream to its end first.")
        return self._reply


class FairLock:
    """A lock that is given in the order of asking; `threading.Lock` promises no order."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for one's turn, hold the lock, give it to the next."""
        ticket = threading.Event()
        with self._guard:
            self._waiting.append(ticket)
            if self._waiting[0] is ticket:
                ticket.set()
        try:
            ticket.wait()
            yield
        finally:
            with self._guard:
                self._waiting.remove(ticket)
                if self._waiting:
                    self._waiting[0].set()
