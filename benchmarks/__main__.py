"""The command `python -m benchmarks`: chosen measurements, one after the other, and their rows.

In: arguments. Out: a table or one JSON object on standard output, progress on standard error. It
ends with 0 whatever the figures are: whoever wants a verdict reads `met`. Each measurement is a
module with a function `measure`, loaded when its turn comes.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console

from benchmarks.rows import Options, Row, as_json, as_table, not_measured
from memlong_agent import MemLongError

Measure = Callable[[Options], list[Row]]

MEASUREMENTS = {
    "decode": "time per token with 2,048 recalled tokens, against the stock model; and prefill",
    "ingest": "speed of encoding up to the memory layer, against a full forward",
    "retrieval": "time of one turn's recall in a bank of 100,000 memories (--quick: in RAM)",
    "encryption": "time of one turn's recall from an encrypted bank, against a plain one",
    "startup": "time that `memlong --help` and `import memlong_agent` add to an empty Python",
    "stalls": "longest stall of an event loop while the LangChain and LlamaIndex adapters reply",
    "soak": "growth of memory and handles over 100,000 memories added, 10,000 deleted (30 minutes)",
    "rss": "growth of resident memory while 5 MB of text are read (not in --quick)",
}
SLOW = ("soak", "rss")
_PACKAGES = ("torch", "transformers", "faiss-cpu", "sqlalchemy", "sentence-transformers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.device.startswith("cuda") and not _has_cuda():
        parser.error("this machine has no CUDA device: leave out --device, or pass --device cpu")
    options = Options(given.quick, given.device, given.bank_on_disk)
    start, rows = time.perf_counter(), []
    for name in chosen(given.only, options.quick):
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        rows += measured(name, measurement(name), options)
    seconds = time.perf_counter() - start
    facts = {"quick": options.quick, "device": options.device, "seconds": round(seconds, 1)}
    if given.json:
        print(as_json(rows, {**facts, **machine()}))
        return 0
    title = f"{os.cpu_count()} cores, {options.device}, {seconds:.0f} s"
    width = None if sys.stdout.isatty() else 140  # rich takes 80 when it sees no terminal
    Console(width=width).print(as_table(rows, title))
    return 0


def chosen(only: Sequence[str] | None, quick: bool) -> list[str]:
    """Names to measure, in order: those asked for, else all but the slow ones of a quick run."""
    if only:
        return [name for name in MEASUREMENTS if name in only]
    return [name for name in MEASUREMENTS if not (quick and name in SLOW)]


def measurement(name: str) -> Measure:
    """The function of a measurement; loads what it needs."""

    def load_and_measure(options: Options) -> list[Row]:
        rows: list[Row] = importlib.import_module(f"benchmarks.{name}").measure(options)
        return rows

    return load_and_measure


def measured(name: str, measure: Measure, options: Options) -> list[Row]:
    """The rows of a measurement, or one that says why this machine cannot make it."""
    try:
        return measure(options)
    except (MemLongError, ImportError) as exc:
        return [not_measured(name, str(exc))]


def machine() -> dict[str, object]:
    """What a figure depends on besides the code."""
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _parser() -> argparse.ArgumentParser:
    lines = [f"  {name:<10} {what}" for name, what in MEASUREMENTS.items()]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure memlong-agent side by side with what it replaces.",
        epilog="measurements:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="under 3 minutes on 2 cores")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument(
        "--only",
        action="append",
        choices=MEASUREMENTS,
        metavar="NAME",
        help="only this measurement; may be repeated",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--bank-on-disk",
        action="store_true",
        help="keep the retrieval bank in files also under --quick (always so without it)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
