"""One `MemLong` per model, bank and options in a process."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from memlong_agent import ConfigError, MemLong
from memlong_agent.memlong import shared
from memlong_agent.testing import tiny_checkpoint


@pytest.fixture
def opened() -> Iterator[list[MemLong]]:
    found: list[MemLong] = []
    yield found
    for memlong in found:
        memlong.close()


def test_the_same_arguments_give_the_same_one_and_others_another(
    model_folder: Path,
    tmp_path: Path,
    opened: list[MemLong],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def open_(bank: str | Path, **options: object) -> MemLong:
        opened.append(shared(model_folder, bank, embedder="hash", **options))
        return opened[-1]

    one = open_(tmp_path / "a")
    assert open_(str(tmp_path / "a")) is one
    assert open_(tmp_path / "x" / ".." / "a") is one
    assert open_(tmp_path / "b") is not one
    monkeypatch.chdir(tmp_path)
    assert open_("not made yet") is open_("not made yet")
    assert open_(tmp_path / "a", top_k=3) is not one
    assert open_(":memory:", model_kwargs={}) is open_(":memory:", model_kwargs={})


def test_a_closed_one_is_opened_anew(
    model_folder: Path, tmp_path: Path, opened: list[MemLong]
) -> None:
    one = shared(model_folder, tmp_path / "bank", embedder="hash")
    one.memories(user_id="alice").add("My dog is called Rex.")
    one.close()
    opened.append(shared(model_folder, tmp_path / "bank", embedder="hash"))
    assert opened[-1] is not one
    assert len(opened[-1].memories(user_id="alice").list()) == 1


def test_threads_that_ask_at_once_load_once(
    model_folder: Path, tmp_path: Path, opened: list[MemLong]
) -> None:
    def ask() -> None:
        opened.append(shared(model_folder, tmp_path / "bank", embedder="hash"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 8 and len({id(memlong) for memlong in opened}) == 1


def test_mistakes_are_those_of_memlong_and_leave_nothing_behind(
    model_folder: Path, tmp_path: Path, opened: list[MemLong]
) -> None:
    with pytest.raises(ConfigError, match="needs a bank"):
        shared(model_folder)
    with pytest.raises(ConfigError, match="topk"):
        shared(model_folder, tmp_path / "bank", embedder="hash", topk=3)
    opened.append(shared(model_folder, tmp_path / "bank", embedder="hash"))


def test_an_option_that_cannot_be_compared_stands_for_itself_as_long_as_it_is_known(
    model_folder: Path,
) -> None:
    class Unhashable(bytearray):
        """Found by its id, which must not become another object's."""

    option = Unhashable()
    known = weakref.ref(option)
    with pytest.raises(ConfigError, match="needs a bank"):
        shared(model_folder, model_kwargs={"option": option})
    del option
    gc.collect()
    assert known() is not None


def test_banks_share_weights_until_the_files_change(tmp_path: Path, opened: list[MemLong]) -> None:
    def weights(**options: object) -> object:
        opened.append(MemLong(folder, ":memory:", embedder="hash", **options))
        return opened[-1].engine.model.lm

    folder = tiny_checkpoint(tmp_path / "model")
    lm = weights()
    assert weights(top_k=2) is lm
    assert weights(dtype="bfloat16") is not lm
    tiny_checkpoint(folder, seed=5)
    assert weights() is not lm
