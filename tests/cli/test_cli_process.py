"""What only a process of its own can show: imports, signals, a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "transformers", "pydantic", "sqlalchemy", "numpy", "rich"}
# A test run started in the background hands an ignored SIGINT down to its children.
START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from memlong_agent.cli import main; main()"
)
LONG_S = 300  # a machine under load takes a minute to import torch


def python(code: str, *args: str) -> list[str]:
    return [sys.executable, "-c", code, *args]


@contextlib.contextmanager
def running(*args: str, stdio: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        python(START, *args),
        stdin=stdio,
        stdout=stdio,
        stderr=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["add", "--help"], ["add"]])
def test_help_and_mistakes_load_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import contextlib, io, json, sys; from memlong_agent.cli import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): "
        f"main({arguments!r})\n"
        "print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run(python(code), cwd=ROOT, capture_output=True, timeout=LONG_S, check=True)
    loaded = set(json.loads(done.stdout))
    assert "click" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "memlong_agent", "lst"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LONG_S, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("memlong: No such command 'lst'.")
    assert done.stderr.rstrip().endswith("Try 'memlong --help'.")


def test_ctrl_c_ends_a_command_with_130() -> None:
    with running("forget", "--all") as process:
        assert process.stderr is not None
        assert process.stderr.read(6) == b"Forget"  # it has begun to ask
        for _ in range(LONG_S):  # CPython loses a signal that comes just before it waits
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
                break
        assert process.returncode == 130
        assert b"Traceback" not in process.stderr.read()


def read_until(fd: int, awaited: bytes) -> None:
    """Read up to and with `awaited`."""
    seen = b""
    while awaited not in seen:
        ready, _, _ = select.select([fd], [], [], LONG_S)
        assert ready, seen
        more = os.read(fd, 4096)
        assert more, seen
        seen += more


def test_at_a_terminal_ctrl_c_and_mistakes_do_not_end_the_chat(environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    # Greedy, this model never says its stop token: the reply lasts until it is cancelled.
    options = ("--embedder", "hash", "--max-tokens", "100000")
    try:
        with running("chat", *options, stdio=theirs) as process:
            assert process.stderr is not None
            told = process.stderr.fileno()
            read_until(ours, b"> ")  # typed before the prompt, a line would be echoed twice
            os.write(ours, b"/recals\n")
            read_until(told, b"memlong: There is no command /recals.")
            read_until(ours, b"> ")
            os.write(ours, b"Hello.\n")
            read_until(ours, b"Hello.\r\n")
            for _ in range(100):  # bytes: more than a terminal's control codes, so it is the reply
                os.read(ours, 1)
            process.send_signal(signal.SIGINT)
            read_until(told, b"(cancelled)")
            os.write(ours, b"/memories\n")
            read_until(ours, b"There are no memories.\r\n> ")
            # At the prompt: a fresh line. CPython loses a signal that comes just before it waits.
            process.send_signal(signal.SIGINT)
            while not select.select([told], [], [], 2)[0]:
                process.send_signal(signal.SIGINT)
            read_until(told, b"(Ctrl-D leaves)")
            read_until(ours, b"> ")
            os.write(ours, b"\x04")
            assert process.wait(LONG_S) == 0
    finally:
        os.close(ours)
        os.close(theirs)
