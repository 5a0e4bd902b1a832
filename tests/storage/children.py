"""Processes that write to a bank and are killed. Run as a script by test_processes.py.

Importing torch takes longer than a whole life of a child, so this helper imports it once, opens no
bank, and forks a child for each line of JSON on its standard input.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bank_making import ALICE, MODEL, SPEC, kv_of, memory
from sqlalchemy import event

from memlong_agent.errors import MemoryNotFoundError
from memlong_agent.kv import KVChunk, KVSpec
from memlong_agent.storage import Owner, RecallMark, Storage
from memlong_agent.storage.blobs import FileBlobs
from memlong_agent.storage.folder import open_database
from memlong_agent.storage.kvfile import BlobRef


class Marks:
    """Says where in a write the child is, and ends it there."""

    def __init__(self, stage: str, count: int, pipe: int) -> None:
        self.stage, self.count, self.pipe = stage, count, pipe

    def __call__(self, stage: str) -> None:
        if stage != self.stage:
            return
        self.count -= 1
        if self.count == 0 and self.pipe < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.count == 0:
            os.write(self.pipe, b"!")  # the parent kills, while this goes on writing

    def around(self, name: str) -> None:
        """Mark `before-<name>` and `after-<name>` of an operating system call."""
        real = getattr(os, name)

        def call(*args: Any) -> Any:
            self(f"before-{name}")
            result = real(*args)
            self(f"after-{name}")
            return result

        setattr(os, name, call)


class MarkedBlobs(FileBlobs):
    marks: Marks

    def publish(self, spec: KVSpec, chunks: Sequence[KVChunk]) -> list[BlobRef]:
        refs = super().publish(spec, chunks)
        self.marks("published")
        return refs


def life_of_a_victim(order: dict[str, Any], pipe: int) -> None:
    """Add, replace and delete until killed; what is done is in the log, after it was done."""
    folder, log = Path(order["folder"]), os.open(order["log"], os.O_WRONLY | os.O_APPEND)

    def say(*words: str) -> None:
        os.write(log, (json.dumps(words) + "\n").encode())

    marks = Marks(order["stage"], order["count"], pipe)
    blobs = MarkedBlobs(folder)
    blobs.marks = marks
    db = open_database(folder, order.get("database"), 10.0)
    bank = Storage(db, blobs)
    for name in ("fdatasync", "rename", "fsync", "unlink"):
        marks.around(name)
    event.listen(db.engine, "commit", lambda conn: marks("before-commit"))
    chance = random.Random(order["seed"])
    mine: list[str] = []
    for turn in range(10_000):
        texts = [f"{order['seed']} {turn} {i}" for i in range(chance.choice((1, 3, 6)))]
        if turn % 3 == 2:
            gone = mine.pop(chance.randrange(len(mine)))
            say("deleting", gone)
            bank.delete(ALICE, [gone], purge=order.get("purge", True))
            say("deleted", gone)
        elif turn % 7 == 6:
            say("replacing", mine[-1], *texts)
            bank.replace(ALICE, mine[-1], memory(*texts))
            say("holds", mine[-1], *texts)
        else:
            (stored,) = bank.add(ALICE, [memory(*texts)])
            mine.append(stored.id)
            say("holds", stored.id, *texts)


def watch(order: dict[str, Any], pipe: int) -> None:
    """Read everything, over and over, while others write and die; each K/V must be its text's."""
    with Storage.open(order["folder"], database=order["database"]) as bank:
        for _ in range(order["passes"]):
            with suppress(MemoryNotFoundError):  # forgotten since it was listed
                pks = [pk for each in bank.list_memories(ALICE) for pk in each.chunk_pks]
                kept = bank.chunks(ALICE, pks)
                for chunk, kv in zip(kept, bank.read_kv([c.pk for c in kept]), strict=True):
                    assert kv.keys.equal(kv_of(chunk.text, 5).keys), chunk.text


def add_and_recall(order: dict[str, Any], pipe: int) -> None:
    """Open the bank (perhaps as the first), write memories, count recalls of a shared chunk."""
    with Storage.open(order["folder"], database=order.get("database")) as bank:
        bank.claim(MODEL, SPEC)
        for i in range(order["writes"]):
            owner = ALICE if i % 2 else Owner("default", "user", order["name"])
            (stored,) = bank.add(owner, [memory(f"{order['name']} {i}", "more")])
            assert len(bank.read_kv(stored.chunk_pks)) == 2
            for age in bank.chunk_ages(ALICE)[:1]:
                bank.record_recalls(ALICE, f"{order['name']} {i}", [RecallMark(age.pk, 0, 0.5)])


def use_across_fork(order: dict[str, Any], pipe: int) -> None:
    """Open a bank, use it with threads, fork, and use it on both sides."""
    with Storage.open(order["folder"], database=order.get("database")) as bank:
        bank.claim(MODEL, SPEC)
        (stored,) = bank.add(ALICE, [memory("a", "b", "c", "d", "e")])
        child = fork(lambda: bank.read_kv(bank.add(ALICE, [memory("from child")])[0].chunk_pks * 5))
        assert len(bank.read_kv(stored.chunk_pks)) == 5
        bank.add(ALICE, [memory("from parent")])
        assert os.waitpid(child, 0)[1] == 0
        assert len(bank.list_memories(ALICE)) == 3 and bank.verify() == []


def fill_the_log(order: dict[str, Any], pipe: int) -> None:
    """Write 3 MB when told to, most of the log's limit, and a little more when told again."""
    folder, signs = Path(order["folder"]), Path(order["signs"])
    with Storage.open(folder) as bank:
        for stage, writes in (("held", 6), ("free", 1)):
            (signs / f"{order['name']} ready {stage}").touch()
            wait_for(signs / stage)
            for i in range(writes):
                text = f"{order['name']} {stage} {i}"
                bank.add(ALICE, [memory(text, metadata={"x": "y" * 500_000})])
        (signs / f"{order['name']} done").touch()
        wait_for(signs / "end")  # whoever closes a database last checkpoints it, alone


def wait_for(sign: Path) -> None:
    give_up = time.monotonic() + 120
    while not sign.exists():
        if time.monotonic() > give_up:
            raise TimeoutError(sign)
        time.sleep(0.01)


LIVES = {
    life.__name__: life
    for life in (life_of_a_victim, watch, add_and_recall, use_across_fork, fill_the_log)
}


def fork(life: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        try:
            life()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
        finally:
            os._exit(1)
    return child


def run(orders: list[dict[str, Any]]) -> list[int]:
    """Fork a child for each order; the exit status of each, negative for a signal."""
    ends = [os.pipe() if order.get("from_outside") else (-1, -1) for order in orders]
    children = [
        fork(lambda order=order, pipe=end[1]: LIVES[order["life"]](order, pipe))
        for order, end in zip(orders, ends, strict=True)
    ]
    for child, (reading, writing) in zip(children, ends, strict=True):
        if reading >= 0:
            os.close(writing)
            os.read(reading, 1)
            os.close(reading)
            os.kill(child, signal.SIGKILL)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()
