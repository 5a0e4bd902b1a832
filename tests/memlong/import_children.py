"""`memlong import`, killed. Run as a script by test_import_killed.py, with tests/storage on the
path; orders and answers are as in upgrade_children.py.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Any

from upgrade_children import Boundaries, serve

import memlong_agent.memlong  # noqa: F401  once for all children, which need it
from memlong_agent.cli import main


def imported(order: dict[str, Any], mark: Boundaries) -> None:
    mark.everywhere()
    with redirect_stdout(sys.stderr):  # the answers are on the real one
        main(["import", order["archive"], *order["options"]], standalone_mode=False)


if __name__ == "__main__":
    serve(imported)
