"""What an interrupted operation is: how it is done, and what it may leave behind.

In: a place (crash_bank.py). Out: the place after it, and the bank that is open then. The operations
themselves are in crash_writes.py and crash_whole.py. Knows no fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash_bank import Clock, opened

from memlong_agent.errors import MemLongError
from memlong_agent.memory import MemoryBank

Act = Callable[[MemoryBank], object]
FolderAct = Callable[[Path, Clock], object]


@dataclass(frozen=True)
class Operation:
    """One call that writes to an open bank."""

    act: Act | None = None
    partly: Sequence[Act] = ()
    """Beginnings of the call, each of which is committed on its own, in order."""
    done_by_error: str = ""
    """Words of an error that says the call was done all the same."""
    partly_returned: bool = False
    """The call may end well with only a beginning done: it leaves the rest for later, and says so
    in the log."""
    before: Act | None = None
    """What is done beforehand in the same process, unharmed."""
    options: dict[str, Any] = field(default_factory=dict)
    opens: bool = False
    """It is the opening of the bank that is interrupted, and `act` is what follows it."""
    closes: bool = False
    """The bank is closed by it."""
    start: FolderAct | None = None
    """What is done to the place in an earlier process, unharmed."""
    fresh: bool = False
    """It meets no bank, but an empty place."""
    by_the_clock: bool = False
    """Under a wrong clock it may find nothing to do."""
    on_folder: FolderAct | None = None
    """The call, if it takes the folder of a bank that nobody has open; instead of `act`."""
    left: Sequence[dict[str, Any]] = ()
    """Other options than `options` that the bank it leaves may have to be opened with."""
    refused: str = ""
    """Words of the error that refuses a bank it has not finished; doing it again finishes it."""

    def prepared(self, place: Path, clock: Clock, begin: Callable[[], object]) -> MemoryBank | None:
        """The bank that it needs open; with a call of `begin` before the first thing that may be
        harmed."""
        if self.opens or self.on_folder is not None:
            begin()
        if self.on_folder is not None:
            return None
        bank = opened(place, clock, **self.options)
        if self.before is not None:
            self.before(bank)
        if not self.opens:
            begin()
        return bank

    def do(self, bank: MemoryBank | None, place: Path, clock: Clock) -> None:
        """The call itself."""
        if self.on_folder is not None:
            self.on_folder(place, clock)
        elif self.act is not None and bank is not None:
            self.act(bank)

    def finished(self, place: Path, clock: Clock) -> tuple[MemoryBank, bool]:
        """The bank of a place that this was done to, and whether it had to be finished first."""
        errors = []
        ways = [self.options, *self.left]
        for options in ways:
            try:
                return opened(place, clock, **options), False
            except MemLongError as exc:
                errors.append(str(exc))
        assert self.refused and all(self.refused in each for each in errors), errors
        assert self.on_folder is not None
        self.on_folder(place, clock)
        return opened(place, clock, **ways[-1]), True
