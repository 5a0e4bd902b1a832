"""What people and programs read: tables, JSON lines, a progress bar, the line of an error.

In: public records and numbers. Out: text on standard output; progress and errors on standard
error. Text of memories is shown as it is, never as markup, and cannot steer the terminal. rich is
imported only when a table or a bar is drawn.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from memlong_agent.records import Memory, Recall

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line end
_PIPE_COLUMNS = 120  # rich takes 80 when it sees no terminal, which leaves 30 for a text
_ID_COLUMNS = 32
_LISTED_CHARS = 200
_FAILED = 2


def fail(message: str) -> int:
    """The one line of an error on standard error; gives the exit code."""
    click.echo(f"memlong: {plain(' '.join(message.split()))}", err=True)
    return _FAILED


def plain(text: str) -> str:
    """The text without escape sequences: what was remembered must not move the cursor."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def note(message: str) -> None:
    """A line for people on standard error."""
    click.echo(message, err=True)


def emit(record: object) -> None:
    """One JSON value on one line; ASCII, so that it is valid under every encoding."""
    click.echo(json.dumps(record))


def counted(number: int, noun: str) -> str:
    """`1 memory`, `1,200 memories`."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def size(nbytes: int) -> str:
    """Bytes in decimal units."""
    from rich.filesize import decimal

    return decimal(nbytes)


def table(rows: Sequence[Sequence[str]], *columns: str) -> None:
    """A table; columns named with a leading `>` are numbers, and the first is never wrapped."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = None if sys.stdout.isatty() else _PIPE_COLUMNS
    drawn = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for place, name in enumerate(columns):
        justify: Any = "right" if name.startswith(">") else "left"
        drawn.add_column(Text(name.lstrip(">")), justify=justify, no_wrap=place == 0)
    for row in rows:
        drawn.add_row(*(Text(plain(cell)) for cell in row))
    Console(file=sys.stdout, width=width).print(drawn)


def recall_table(recalled: Sequence[Recall]) -> None:
    """Recalled chunks, best first."""
    rows = [
        (
            f"{each.memory_id}\n{_when(each.created_at, each.source or each.session_id)}",
            f"{each.score:.2f}",
            "" if each.attention_mass is None else f"{each.attention_mass:.1%}",
            each.text.strip(),
        )
        for each in recalled
    ]
    table(rows, "Memory, from (UTC)", ">Score", ">Attention", "Text")


def memory_table(memories: Sequence[Memory]) -> None:
    """Memories, as they come."""
    rows = [
        (
            f"{each.id}\n{_when(each.created_at, each.source or each.session_id)}",
            f"{each.tokens:,}",
            _beginning(each.text),
        )
        for each in memories
    ]
    table(rows, "Memory, from (UTC)", ">Tokens", "Text")


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[float], None]]:
    """A bar on standard error while something runs; its value is set by the yielded function.

    Nothing is drawn when standard error is not a terminal. `total` None: the end is not known.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=sys.stderr, highlight=False)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(plain(label).replace("[", r"\["), total=total)
        yield lambda done: bar.update(task, completed=done)


def _when(at: datetime, where: str | None) -> str:
    """As wide as the id above it, at most: a long source would take the room of the text."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} {where or ''}"[:_ID_COLUMNS]


def _beginning(text: str) -> str:
    """A document's section has some thousand characters; a list shows how it begins."""
    line = " ".join(text.split())
    return line if len(line) <= _LISTED_CHARS else f"{line[:_LISTED_CHARS]}..."
