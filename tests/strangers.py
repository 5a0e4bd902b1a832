"""Processes of the isolation tests: scripts whose workers look at whose text they are given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FULL = os.environ.get("MEMLONG_TESTS") == "full"
PROCESSES, WORKERS = 2, 4  # workers of each


def reports_of(
    script: Path, arguments: Sequence[Path], operations: int, paths: Sequence[Path]
) -> list[dict[str, Any]]:
    """What each process reports after its part of `operations`; all must end well.

    A script is given `arguments`, its number and the operations of each worker; `paths` is what it
    can import from.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    environment["OMP_NUM_THREADS"] = "1"
    each = str(-(-operations // (PROCESSES * WORKERS)))
    children = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments), str(number), each],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for number in range(PROCESSES)
    ]
    said = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0] * PROCESSES
    reports = [json.loads(text) for text in said]
    sys.stdout.write(f"{reports}\n")
    return reports
