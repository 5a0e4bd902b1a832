"""What the tests of the command expect of a result, and read from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from click.testing import Result

Run = Callable[..., Result]
KEY = "The spare key is under the copper teapot."


def ok(result: Result) -> str:
    """Standard output of a command that must have succeeded without a word on standard error."""
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr or result.exception
    return str(result.stdout)


def objects(result: Result) -> list[dict[str, Any]]:
    """The JSON objects, one a line, that are all of the standard output."""
    return [json.loads(line) for line in ok(result).splitlines()]


def line_of(result: Result) -> str:
    """The only line of a mistake."""
    assert result.exit_code == 2, (result.exit_code, result.exception)
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("memlong: ")
    return str(line)
