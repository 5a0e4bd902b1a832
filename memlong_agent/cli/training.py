"""`memlong train`: the bundled model, or a variant of it, from nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from memlong_agent.cli.output import emit, note, plain, table

_AS_RELEASED = "as released"


@click.command(epilog="\b\nExample:\n  memlong train --out ./tiny --threads 2")
@click.option("--out", metavar="DIR", required=True, help="Folder of the finished model.")
@click.option("--seed", type=int, show_default=_AS_RELEASED, help="Of weights and data.")
@click.option("--base-steps", type=int, show_default=_AS_RELEASED, help="Steps from scratch.")
@click.option("--memory-steps", type=int, show_default=_AS_RELEASED, help="Steps on memory.")
@click.option(
    "--rounds", type=int, show_default=_AS_RELEASED, help="Runs of both; later ones are shorter."
)
@click.option("--batch-rows", type=int, show_default=_AS_RELEASED, help="Dialogues a step.")
@click.option("--threads", type=click.IntRange(min=1), show_default="torch's", help="CPU threads.")
@click.option("--json", "as_json", is_flag=True, help="The scores as JSON on standard output.")
def train(out: str, threads: int | None, as_json: bool, **settings: Any) -> None:
    """Train memlong-tiny into DIR, on dialogues that this package makes.

    A line of progress appears on standard error at every checkpoint. A second call with the same
    DIR resumes at the last one.
    """
    from memlong_agent.training.settings import TrainSettings
    from memlong_agent.training.train import train as run

    given = {name: value for name, value in settings.items() if value is not None}
    with _log_lines():
        scores = run(Path(out), TrainSettings(**given), threads=threads)
    if as_json:
        emit({"out": out, "scores": scores})
        return
    if scores:
        table([(name, f"{score:.1%}") for name, score in scores.items()], "Questions", ">Answered")
    click.echo(f"The model is in {plain(out)}. Use it: memlong chat --model {plain(out)}")


@contextmanager
def _log_lines() -> Iterator[None]:
    """What the training room logs goes to standard error while it runs."""
    logger, handler = logging.getLogger("memlong_agent.training"), _Notes()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Notes(logging.Handler):
    """Log records as lines of their own."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())
