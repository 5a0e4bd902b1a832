"""Failures injected into every system call that changes a bank, one at a time.

Each run does one operation in a process of its own, meets one fault, and is judged by a clean
process: the bank opens and is whole, an error means that nothing changed, success that all is
there, a kill leaves the bank before or after (or at a commit in between that the operation names,
or refused until the operation is done again). Under a clock that jumps, all that does not end by
itself is there. MEMLONG_TESTS=full makes every run there is (more than 30,000, some hours), else
MEMLONG_CRASHES are drawn: at least two of each operation, and as many of each kind of fault.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
FULL = os.environ.get("MEMLONG_TESTS") == "full"
DRAWN = int(os.environ.get("MEMLONG_CRASHES", 150))  # about a minute on an idle core

FAIL, SHORT, TORN, KILL_BEFORE, KILL_AFTER = range(1, 6)
# What can happen to a call, by its letter in crash_shim.c: name -> (action, error, stays).
KILLS = {"killed before": (KILL_BEFORE, 0, 0), "killed after": (KILL_AFTER, 0, 0)}
FULL_DISK = {"ENOSPC": (FAIL, errno.ENOSPC, 0), "ENOSPC stays": (FAIL, errno.ENOSPC, 1)}
BROKEN_DISK = {"EIO": (FAIL, errno.EIO, 0), "EIO stays": (FAIL, errno.EIO, 1)}
INTERRUPTED = {"EINTR": (FAIL, errno.EINTR, 0)}
FAULTS = {
    "w": {
        **KILLS,
        **FULL_DISK,
        **BROKEN_DISK,
        **INTERRUPTED,
        "short": (SHORT, 0, 0),
        "torn": (TORN, 0, 0),
    },
    "s": {**KILLS, **BROKEN_DISK, "ENOSPC": (FAIL, errno.ENOSPC, 0), **INTERRUPTED},
    "t": {**KILLS, **BROKEN_DISK, **INTERRUPTED},
    "r": {**KILLS, **FULL_DISK, **BROKEN_DISK},
    "u": {**KILLS, **BROKEN_DISK},
    "c": {**KILLS, **FULL_DISK, **INTERRUPTED, "EMFILE": (FAIL, errno.EMFILE, 0)},
    "m": {**KILLS, **FULL_DISK},
    "x": {**KILLS, "EIO": (FAIL, errno.EIO, 0), **INTERRUPTED},
}

# Years by which the clock is wrong, at one reading after the other from then on.
JUMPS = {"forward": (40,), "back": (-40,), "to and fro": (40, 0)}
Run = tuple[str, str, dict[str, Any]]
"""Operation; what happens; order to the server."""


class Server:
    """crash_server.py under the shim."""

    def __init__(self, library: Path, work: Path) -> None:
        root = HERE.parent.parent
        paths = os.pathsep.join(map(str, (root, HERE, HERE.parent, HERE.parent / "memory")))
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        environment["LD_PRELOAD"] = str(library)
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "crash_server.py"), str(library), str(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """Ends with an error if the server died."""
        self._process.communicate()
        assert self._process.returncode == 0


def every_run(name: str, calls: str, readings: int) -> Iterator[Run]:
    """Each fault of each call that an operation makes, each jump at each reading of the clock."""
    for number, letter in enumerate(calls, 1):
        for fault, how in FAULTS[letter].items():
            yield name, f"{letter} {fault}", {"fault": [number, *how], "goes_on": number % 2 == 1}
    for reading in range(1, readings + 1):
        for fault, jumps in JUMPS.items():
            yield name, f"clock {fault}", {"reading": reading, "jumps": jumps}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("failures are injected by a shim that needs Linux and a C compiler (cc)")
    folder = tmp_path_factory.mktemp("crash")
    library = folder / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library)]
    subprocess.run([*command, str(HERE / "crash_shim.c"), "-ldl"], check=True)
    server = Server(library, folder)
    yield server
    server.close()


@pytest.mark.timeout(12 * 3600)
def test_no_failure_at_any_write_boundary_loses_a_memory(server: Server) -> None:
    """Nothing committed is lost, nothing wrong is loaded, the bank opens every time."""
    everything = [
        run
        for name in server.ask(names=True)["names"]
        for run in every_run(name, **server.ask(plan=name))
    ]
    ends: Counter[str] = Counter()
    operations: Counter[str] = Counter()
    wrong: list[str] = []
    for name, fault, order in everything if FULL else drawn(everything):
        answer = server.ask(operation=name, **order)
        ends[f"{fault}: {answer['end']}"] += 1
        operations[name] += 1
        wrong += [f"{name}, {fault}, {order}: {each}" for each in answer["wrong"]]
        if answer["wrong"]:
            sys.stdout.write(f"WRONG {wrong[-1]}\n")
    sys.stdout.write(f"{sum(ends.values())} runs: {json.dumps([operations, ends], indent=1)}\n")
    assert not wrong, "\n".join(wrong)
    assert sum(ends.values()) >= (500 if FULL else DRAWN)
    # The shim works: of each thing that it can do, some were felt.
    assert {end.split(": ")[1] for end in ends} == {"-9", "raised", "returned"}


def drawn(everything: Sequence[Run]) -> Iterator[Run]:
    """DRAWN runs: two of each operation, then the same number of each kind of fault, and of those
    the operations that were drawn least."""
    shuffled = list(everything)
    random.Random(os.environ.get("MEMLONG_SEED", "0")).shuffle(shuffled)
    left: dict[tuple[str, str], list[Run]] = {}
    for run in shuffled:
        left.setdefault(run[:2], []).append(run)
    operations, faults = Counter[str](), Counter[str]()

    def drawn_least(kind: tuple[str, str]) -> tuple[bool, int, int]:
        return operations[kind[0]] > 1, faults[kind[1]], operations[kind[0]]

    for _ in range(DRAWN):
        name, fault = kind = min(left, key=drawn_least)
        yield left[kind].pop()
        operations[name] += 1
        faults[fault] += 1
        if not left[kind]:
            del left[kind]
