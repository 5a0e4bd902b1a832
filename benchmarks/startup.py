"""What the package adds to the start of a process: wall time minus that of an empty Python.

Three commands in turn, each in a process of its own; one round before the first is not counted, so
that byte code is compiled. Knows nothing of the package but its two doors.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.rows import Bar, Options, Row, Spread, row
from benchmarks.timing import timed

HELP_BAR = Bar("<=", 0.3)
IMPORT_BAR = Bar("<=", 0.1)
_ROOT = Path(__file__).resolve().parent.parent
_ROUNDS = 5
_EMPTY = ("-c", "pass")
_IMPORT = ("-c", "import memlong_agent")
_HELP = ("-m", "memlong_agent", "--help")


def measure(options: Options) -> list[Row]:
    """`memlong --help` and `import memlong_agent`; the same under every option."""
    rounds = [
        [_start_s(command) for command in (_EMPTY, _HELP, _IMPORT)] for _ in range(1 + _ROUNDS)
    ]
    kept = rounds[1:]
    empty = Spread.of([each[0] for each in kept])
    note = f"beyond the {empty.middle:.3f} s of an empty Python; median of {_ROUNDS}"
    help_, import_ = (Spread.of([each[i] - each[0] for each in kept]) for i in (1, 2))
    return [
        row("startup: memlong --help", help_, "s", HELP_BAR, note),
        row("startup: import", import_, "s", IMPORT_BAR, note),
    ]


def _start_s(arguments: tuple[str, ...]) -> float:
    command = [sys.executable, *arguments]
    return timed(lambda: subprocess.run(command, cwd=_ROOT, check=True, stdout=subprocess.DEVNULL))
