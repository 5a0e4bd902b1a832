"""Rebuilds that are killed go on where they stopped, and end as if nothing had happened."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killed import Killed, contents, orders_to
from postgres_server import PostgresServer

from memlong_agent import IncompatibleMemoryError, MemLong
from memlong_agent.layout import MemoryLayout
from memlong_agent.testing import tiny_checkpoint

TEXT = "Paragraph {} is about thing {}. The harbor of Tarn is called Velmor.\n\n"


@pytest.fixture(scope="module")
def kill() -> Iterator[Killed]:
    with orders_to("rebuild_children.py") as order:
        yield order


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    return tiny_checkpoint(folder, layout=MemoryLayout.memlong(6), layers=6, seed=1)


@pytest.fixture(scope="module")
def bank(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several batches of memories under `model_folder`."""
    folder = tmp_path_factory.mktemp("banks") / "bank"
    furnish(model_folder, folder)
    return folder


def furnish(model: Path, folder: Path, database: str | None = None) -> None:
    with MemLong(model, folder, database=database, embedder="hash") as ml:
        alice = ml.memories(user_id="alice", session_id="s")
        alice.add("".join(TEXT.format(n, n) for n in range(90)), source="tarn.txt")
        for n in range(12):
            alice.add_turn(f"The key number {n} is under the teapot.", f"Noted: number {n}.")
        ml.items().put(("a",), "k", {"drink": "tea"}, texts=["tea"])


@pytest.mark.parametrize("vectors", [False, True], ids=["encoding", "vectors"])
def test_a_killed_rebuild_goes_on(
    vectors: bool, bank: Path, model_folder: Path, other: Path, kill: Killed, tmp_path: Path
) -> None:
    model, embedder = (model_folder, "lexical") if vectors else (other, "hash")
    options = {"vectors": vectors, "embedder": embedder}
    order = {"model": str(model), **options, "boundary": 10_000}

    def copied(name: str) -> Path:
        return Path(shutil.copytree(bank, tmp_path / name))

    whole = copied("whole")
    names = kill({**order, "bank": str(whole)})
    assert names.count("after a batch") > 1 and names[-1] == "after all"
    with MemLong(model, whole, embedder=embedder) as ml:
        expected = contents(ml)
    every = range(1, len(names))
    last = {max(i for i, n in enumerate(names, 1) if n == name) for name in names}
    batches = [i for i, name in enumerate(names, 1) if name == "after a batch"]
    chosen = sorted((last | {1, *batches[:2]}) - {len(names)})
    resumed = 0
    for boundary in every if os.environ.get("MEMLONG_TESTS") == "full" else chosen:
        folder = copied(str(boundary))
        kill({**order, "bank": str(folder), "boundary": boundary})
        begun = finished = False
        try:
            MemLong(model, folder, embedder=embedder).close()
            finished = True
        except IncompatibleMemoryError as refused:
            begun = "is being rebuilt" in str(refused)
        done = MemLong.rebuild(model, folder, **options)
        assert done.resumed == begun
        resumed += begun and done.memories < len(expected["memories"])
        with MemLong(model, folder, embedder=embedder) as ml:
            found = contents(ml)
        assert found == expected, (boundary, names[boundary - 1], finished)
        shutil.rmtree(folder)
    assert resumed > 0


def test_on_postgres_it_goes_on_and_who_has_the_old_model_is_refused(
    model_folder: Path, other: Path, kill: Killed, tmp_path: Path, postgres: PostgresServer
) -> None:
    where: dict[str, Any] = {"bank": tmp_path / "bank", "database": postgres.url()}
    furnish(model_folder, where["bank"], where["database"])
    with MemLong(model_folder, **where, embedder="hash") as old:
        before = {each.id: each.text for each in old.memories(user_id="alice").list()}
        order = {**where, "bank": str(where["bank"]), "model": str(other), "vectors": False}
        order |= {"embedder": "hash", "batches_only": True}
        assert kill({**order, "boundary": 2}) == ["after a batch"] * 2  # the first is of none
        for call in (
            lambda: old.memories(user_id="alice").search("key number 7"),
            lambda: old.memories(user_id="alice").add("Written meanwhile."),
            lambda: MemLong(model_folder, **where, embedder="hash"),
        ):
            with pytest.raises(IncompatibleMemoryError, match="is being rebuilt"):
                call()
        done = MemLong.rebuild(other, **where, embedder="hash")
        assert done.resumed and 0 < done.memories < len(before)
        with pytest.raises(IncompatibleMemoryError, match="rebuilt for another model"):
            old.memories(user_id="alice").search("key number 7")
    with MemLong(other, **where, embedder="hash") as ml:
        assert {each.id: each.text for each in ml.memories(user_id="alice").list()} == before
        assert "number 7" in ml.memories(user_id="alice").search("key number 7")[0].text
        assert ml.doctor().problems == ()
