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


def die(order: dict[str, Any], pipe: int) -> None:
    mark = Boundaries(order["boundary"], pipe)
    for name in ("fsync", "rename", "unlink"):
        mark.around(name)
    event.listen(Engine, "after_cursor_execute", lambda *_: mark("after a statement"))
    event.listen(Engine, "commit", lambda _: mark("before commit"))
    upgrade(order["bank"])
    mark("after all")
    os.kill(os.getpid(), signal.SIGKILL)


for line in sys.stdin:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            die(json.loads(line), writing)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        names = told.read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    sys.stdout.write(json.dumps(names) + "\n")
    sys.stdout.flush()
