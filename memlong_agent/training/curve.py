"""The training curve as a picture: answers found with memory and without, by step.

In: the folder of a run. Out: `training_curve.png` in it, if matplotlib (extra `[train]`) is there.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

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
    steps, base = [], 0
    for record in records:
        base = max(base, record["step"]) if record["phase"] == "base" else base
        steps.append(record["step"] + (base if record["phase"] == "memory" else 0))
    for name, label in _SERIES.items():
        axes.plot(steps, [100 * record[name] for record in records], label=label)
    axes.axvline(base, color="gray", linewidth=0.8, linestyle=":")
    axes.set(xlabel="step (dotted: lower layers frozen)", ylabel="% of dev windows all right")
    axes.legend()
    figure.savefig(folder / "training_curve.png", dpi=80)
    return folder / "training_curve.png"
