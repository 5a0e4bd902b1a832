"""One line of the result: a figure, its spread, its bar, and whether the bar is met.

In: numbers. Out: frozen rows, as a table for eyes or as one JSON object for programs. It measures
nothing, judges by the bar alone and knows no model and no bank.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Self

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Options:
    """What the user of the command chose."""

    quick: bool = False
    """All measurements together under 3 minutes on 2 cores: fewer rounds, smaller bank."""
    device: str = "cpu"
    bank_on_disk: bool = False
    """Keep the retrieval bank in files also under `quick`."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and how far the single measurements lie."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Bar:
    """A target: the median must be on this side of the limit."""

    sign: Literal["<=", ">="]
    limit: float

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.sign == "<=" else value >= self.limit

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `value` is a median in `unit`; None when it could not be measured."""

    name: str
    value: float | None
    unit: str
    bar: str
    """As in `<= 1.15`; empty when the figure is for information only."""
    met: bool | None
    """None without a bar or without a value."""
    low: float | None
    high: float | None
    note: str


def row(name: str, figure: Spread, unit: str, bar: Bar | None = None, note: str = "") -> Row:
    """The row of a measured figure, judged against its bar."""
    met = None if bar is None else bar.is_met(figure.middle)
    shown = "" if bar is None else str(bar)
    return Row(name, figure.middle, unit, shown, met, figure.low, figure.high, note)


def not_measured(name: str, reason: str) -> Row:
    """The row of a measurement that this machine cannot make."""
    return Row(name, None, "", "", None, None, None, f"not measured: {reason}")


def as_json(rows: Sequence[Row], facts: Mapping[str, object]) -> str:
    """One JSON object on one line: the facts of the run, and `rows`."""
    return json.dumps({**facts, "rows": [asdict(each) for each in rows]})


def as_table(rows: Sequence[Row], title: str) -> Table:
    """The same for eyes."""
    table = Table(title=title, title_justify="left", box=SIMPLE, show_lines=True)
    for heading in ("measurement", "median", "min..max", "bar", "met", "note"):
        right = heading in ("median", "min..max", "bar")
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "note")
    for each in rows:
        table.add_row(*(Text(cell) for cell in _cells(each)))
    return table


def _cells(each: Row) -> tuple[str, ...]:
    met = {True: "yes", False: "NO", None: "-"}[each.met]
    if each.value is None or each.low is None or each.high is None:
        return each.name, "-", "-", each.bar, met, each.note
    middle = f"{_short(each.value)} {each.unit}"
    return each.name, middle, f"{_short(each.low)}..{_short(each.high)}", each.bar, met, each.note


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
