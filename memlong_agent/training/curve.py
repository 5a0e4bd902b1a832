"""The training curve as a picture: answers found with memory and without, by step.

In: the folder of a run. Out: `training_curve.png` in it, if matplotlib (extra `[train]`) is there.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SERIES = {
    "everyday_on": "memory on, everyday sentences kept out",
    "held_out_on": "memory on, new openers and frames",
    "train_wordings_on": "memory on, trained wordings",
    "held_out_off": "memory off",
}


def plot_curve(folder: Path, log: str) -> Path | None:
    """Draw `log` (JSON lines) of `folder`; None without matplotlib or without a log."""
    path = folder / log
    if importlib.util.find_spec("matplotlib") is None or not path.exists():
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in path.read_text().splitlines()]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, borders = _steps(records)
    for name, label in _SERIES.items():
        axes.plot(steps, [100 * record[name] for record in records], label=label)
    for border in borders:
        axes.axvline(border, color="gray", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="step (dotted: lower layers frozen, thawed)", ylabel="% of dev windows all right"
    )
    axes.legend()
    figure.savefig(folder / "training_curve.png", dpi=80)
    return folder / "training_curve.png"


def _steps(records: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """The step of each record since the run began, and where phases begin but the first."""
    steps: list[int] = []
    borders: list[int] = []
    for at, record in enumerate(records):
        if at and _stretch(record) != _stretch(records[at - 1]):
            borders.append(steps[-1])
        steps.append(record["step"] + (borders[-1] if borders else 0))
    return steps, borders


def _stretch(record: Mapping[str, Any]) -> tuple[int, str]:
    return record.get("round", 0), record["phase"]
