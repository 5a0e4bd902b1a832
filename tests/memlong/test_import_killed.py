"""`memlong import`, killed at any moment: all of the archive is there, or nothing, and the next
import ends as if nothing had happened."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killed import Killed, contents, orders_to

from memlong_agent import MemLong
from memlong_agent.layout import MemoryLayout
from memlong_agent.storage import Owner
from memlong_agent.testing import tiny_checkpoint

BOB = Owner("default", "user", "bob")
TEXT = "Paragraph {} is about thing {}. The harbor of Tarn is called Velmor.\n\n"


@pytest.fixture(scope="module")
def kill() -> Iterator[Killed]:
    with orders_to("import_children.py") as order:
        yield order


@pytest.fixture(scope="module")
def archive(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    with MemLong(model_folder, folder / "bank", embedder="hash") as ml:
        alice = ml.memories(user_id="alice", session_id="s")
        alice.add("".join(TEXT.format(n, n) for n in range(40)), source="tarn.txt")
        for n in range(4):
            alice.add_turn(f"The key number {n} is under the teapot.", f"Noted: number {n}.")
        ml.items().put(("a",), "k", {"drink": "tea"}, texts=["tea"])
        ml.export(folder / "all.memlong")
    return folder / "all.memlong"


@pytest.mark.parametrize("encode", [False, True], ids=["same model", "other model"])
def test_a_killed_import_is_whole_or_nothing(
    encode: bool, archive: Path, model_folder: Path, kill: Killed, tmp_path: Path
) -> None:
    model = model_folder
    if encode:
        model = tiny_checkpoint(
            tmp_path / "other", layout=MemoryLayout.memlong(6), layers=6, seed=1
        )
    start = tmp_path / "start"
    with MemLong(model, start, embedder="hash") as ml:
        ml.memories(user_id="bob").add("This bank was here before.")

    def found(bank: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
        with MemLong(model, bank, embedder="hash") as ml:
            ml.engine.bank._storage._grace_s = 0.0
            ml.engine.bank._storage.sweep()
            files = sum(path.is_file() for path in (bank / "kv").rglob("*"))
            return contents(ml), contents(ml, BOB), files

    def killed_at(boundary: int) -> tuple[Path, list[str]]:
        bank = Path(shutil.copytree(start, tmp_path / str(boundary)))
        options = ["--bank", str(bank), "--model", str(model), "--embedder", "hash"]
        options += ["--encode"] if encode else []
        names = kill({"archive": str(archive), "options": options, "boundary": boundary})
        return bank, names

    before, checksum = found(start), archive.read_bytes()
    whole, names = killed_at(10_000_000)
    after = found(whole)
    assert len(after[0]["memories"]) > 5 and after[0]["items"] and not before[0]["memories"]
    every = range(1, len(names))
    last = {name: at for at, name in enumerate(names[:-1], 1)}
    third = len(names) // 3
    seen = {"before": 0, "after": 0}
    for boundary in every if os.environ.get("MEMLONG_TESTS") == "full" else {third, *last.values()}:
        bank, reached = killed_at(boundary)
        left = found(bank)
        assert left in (before, after), (boundary, reached[-1])
        seen["after" if left == after else "before"] += 1
        with MemLong(model, bank, embedder="hash") as ml:
            done = ml.restore(archive, encode=encode)
            assert (done.present > 0) == (left == after)
        assert found(bank) == after, (boundary, reached[-1])
        shutil.rmtree(bank)
    assert seen["before"] > 2 and archive.read_bytes() == checksum
