"""A small random model on disk, and `memlong`, which runs a command on a bank of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_results import KEY, Run, objects
from click.testing import CliRunner, Result
from transformers.utils import logging

from memlong_agent.cli import main
from memlong_agent.layout import MemoryLayout
from memlong_agent.testing import tiny_checkpoint


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), layout=MemoryLayout.memlong(4))


@pytest.fixture
def environment(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """The variables that choose bank and model, set; the working folder is the test's own."""
    chosen = {"MEMLONG_MODEL": str(model), "MEMLONG_BANK": str(tmp_path / "bank")}
    # Set here too, so that what the command leaves in the environment goes with the test.
    chosen["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    # The variable is read when transformers is imported, which another test has done.
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    yield chosen
    if shown:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@pytest.fixture
def memlong(environment: dict[str, str]) -> Run:
    """Run a command in this process, with the embedder `hash` unless another is named."""

    def run(*args: str, stdin: str | bytes | None = None) -> Result:
        opens = args[0] not in ("train", "upgrade", "encrypt", "--help", "--version", "nonsense")
        embedder = ["--embedder", "hash"] if opens and "--embedder" not in args else []
        return CliRunner().invoke(main, [*args, *embedder], input=stdin)

    return run


@pytest.fixture
def note(tmp_path: Path) -> str:
    """The path of a text with one fact."""
    path = tmp_path / "notes.md"
    path.write_text(f"{KEY}\n")
    return str(path)


@pytest.fixture
def noted(memlong: Run, note: str) -> str:
    """The id of the only memory in the bank."""
    [written] = objects(memlong("add", note, "--json"))
    [memory_id] = written["memory_ids"]
    return str(memory_id)
