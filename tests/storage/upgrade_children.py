"""Upgrades that are killed. Run as a script by test_upgrade.py.

For each line of JSON on standard input a child is forked that upgrades a bank and kills itself at
the n-th boundary: a call that changes files, a statement or a commit. Answers with the names of
the boundaries up to there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, event

from memlong_agent.storage.upgrade import upgrade


class Boundaries:
    """Counts what changes something, and ends the process before or after it."""

    def __init__(self, count: int, pipe: int) -> None:
        self.count, self.pipe = count, pipe

    def __call__(self, name: str) -> None:
        os.write(self.pipe, f"{name}\n".encode())
        self.count -= 1
        if self.count == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            self(f"before {name}")
            result = real(*args, **options)
            self(f"after {name}")
            return result

        setattr(os, name, call)

    def everywhere(self) -> None:
        """Count what changes files, every statement and every commit."""
        for name in ("fsync", "rename", "unlink"):
            self.around(name)
        event.listen(Engine, "after_cursor_execute", lambda *_: self("after a statement"))
        event.listen(Engine, "commit", lambda _: self("before commit"))


def serve(life: Callable[[dict[str, Any], Boundaries], None]) -> None:
    """Fork a child for each order; it dies at the boundary asked for, or after all."""
    for line in sys.stdin:
        order = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                mark = Boundaries(order["boundary"], writing)
                life(order, mark)
                mark("after all")
                os.kill(os.getpid(), signal.SIGKILL)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
            os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as told:
            names = told.read().splitlines()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        sys.stdout.write(json.dumps(names) + "\n")
        sys.stdout.flush()


def upgraded(order: dict[str, Any], mark: Boundaries) -> None:
    mark.everywhere()
    upgrade(order["bank"])


if __name__ == "__main__":
    serve(upgraded)
