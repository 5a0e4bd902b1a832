"""K/V files: their bytes, their order with the rows, and what happens when the disk fails."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_making import ALICE, NOON, SPEC, kv_of, memory
from safetensors import safe_open
from sqlalchemy import event

from memlong_agent.errors import MemoryNotFoundError, StoreCorruptError, StoreError
from memlong_agent.kv import KVSpec
from memlong_agent.storage import Storage
from memlong_agent.storage.blobs import FileBlobs, MemoryBlobs


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "kv").rglob("*") if path.is_file())


def stores(folder: Path) -> list[FileBlobs | MemoryBlobs]:
    (folder / "kv").mkdir()
    return [FileBlobs(folder), MemoryBlobs()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("layers", [(7,), tuple(range(16, 80))])
def test_files_are_valid_safetensors_with_a_page_aligned_payload(
    tmp_path: Path, dtype: torch.dtype, layers: tuple[int, ...]
) -> None:
    spec = KVSpec(layers, kv_heads=2, head_dim=4, dtype=dtype)
    chunk = kv_of("a", 3, spec)
    for store in stores(tmp_path):
        (ref,) = store.publish(spec, [chunk])
        (back,) = store.read_many(spec, [ref])
        assert back.keys.dtype == dtype
        assert torch.equal(back.keys, chunk.keys) and torch.equal(back.values, chunk.values)
    (path,) = files_of(tmp_path)
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert header == (4096 if len(layers) == 1 else 12_288)
    assert path.stat().st_size == ref.nbytes == header + chunk.nbytes
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {f"{kind}.{layer}" for kind in "kv" for layer in layers}
        for place, layer in enumerate(layers):
            assert torch.equal(file.get_tensor(f"k.{layer}"), chunk.keys[place])
            assert torch.equal(file.get_tensor(f"v.{layer}"), chunk.values[place])


def test_views_and_gradients_are_stored_as_they_look(tmp_path: Path) -> None:
    chunk = kv_of("a", 6)
    half = replace(chunk, keys=chunk.keys[:, :, ::2], values=chunk.values[:, :, 1::2])
    half.keys.requires_grad_()
    for store in stores(tmp_path):
        (back,) = store.read_many(SPEC, store.publish(SPEC, [half]))
        assert torch.equal(back.keys, half.keys) and torch.equal(back.values, half.values)


@pytest.mark.parametrize(("head_dim", "beside"), [(4, False), (8192, True)])
def test_only_large_files_are_read_by_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head_dim: int, beside: bool
) -> None:
    spec = replace(SPEC, head_dim=head_dim)
    chunks = [kv_of(name, 3, spec) for name in "abcdef"]
    store, _ = stores(tmp_path)
    refs = store.publish(spec, chunks)
    readers: set[str] = set()
    real = os.preadv

    def noted(*args: Any) -> int:
        readers.add(threading.current_thread().name)
        return real(*args)

    monkeypatch.setattr(os, "preadv", noted)
    back = store.read_many(spec, refs)
    assert all(torch.equal(b.keys, c.keys) for b, c in zip(back, chunks, strict=True))
    assert (threading.current_thread().name not in readers) == beside
    store.close()


def test_only_the_owner_of_the_files_may_read_them(folder_bank: Storage, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder_bank.add(ALICE, [memory("a")])
    finally:
        os.umask(before)
    paths = [tmp_path / "bank", *(tmp_path / "bank").rglob("*")]
    modes = {path.name: (path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in paths}
    assert {"bank.sqlite", "bank.sqlite-wal", "bank.sqlite-shm", "bank.lock", "kv"} < set(modes)
    assert {mode for is_dir, mode in modes.values() if is_dir} == {0o700}
    assert {mode for is_dir, mode in modes.values() if not is_dir} == {0o600}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "header", "grown", "missing"])
def test_damage_is_found_and_named(folder_bank: Storage, tmp_path: Path, damage: str) -> None:
    (stored,) = folder_bank.add(ALICE, [memory("a")])
    (path,) = files_of(tmp_path / "bank")
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[:-1])
    elif damage == "grown":
        path.write_bytes(data + b"\0")
    else:
        data[4096 + 3 if damage == "flipped" else 100] ^= 1
        path.write_bytes(data)
    with pytest.raises(StoreCorruptError) as caught:
        folder_bank.read_kv(stored.chunk_pks)
    said = str(caught.value)
    assert str(path) in said and "memlong doctor --repair" in said
    assert ("checksum" in said) == (damage in ("flipped", "header"))
    assert folder_bank.verify() == [said]


def test_publish_is_durable_before_the_row_and_delete_after(
    folder_bank: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def spy(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            done.append(name)
            return result

        monkeypatch.setattr(os, name, call)

    for name in ("writev", "fdatasync", "rename", "fsync", "unlink"):
        spy(name)
    event.listen(folder_bank._db.engine, "commit", lambda conn: done.append("commit"))
    (tmp,) = folder_bank.add(ALICE, [memory("a")])
    writes = [step for step in done if step != "fsync"]
    assert writes == ["writev", "fdatasync", "rename", "commit"]
    assert done[done.index("rename") + 1] == "fsync"  # of the folder, before the commit
    done.clear()
    folder_bank.delete(ALICE, [tmp.id])
    assert done[:3] == ["commit", "unlink", "fsync"]  # then the purge


def fail_at(real: Callable[..., Any], code: int, call_number: int) -> Callable[..., Any]:
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call_number:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    return call


@pytest.mark.parametrize("name", ["writev", "fdatasync", "rename", "fsync"])
@pytest.mark.parametrize("chunks", [2, 6])  # below and above the thread pool's limit
def test_a_full_disk_leaves_nothing_half_written(
    folder_bank: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunks: int
) -> None:
    (old,) = folder_bank.add(ALICE, [memory("before")])
    before = files_of(tmp_path / "bank")
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail_at(getattr(os, name), errno.ENOSPC, 2))
        with pytest.raises(StoreError, match=r"No space left on device.*Free space"):
            folder_bank.add(ALICE, [memory(*(f"new {i}" for i in range(chunks)))])
    assert files_of(tmp_path / "bank") == before
    assert folder_bank.list_memories(ALICE) == [old] and folder_bank.verify() == []


def test_writes_that_stop_early_are_continued(
    folder_bank: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: real(fd, [parts[0][:1000]]))
    (stored,) = folder_bank.add(ALICE, [memory("a")])
    (back,) = folder_bank.read_kv(stored.chunk_pks)
    assert torch.equal(back.keys, kv_of("a", 5).keys)


def test_reads_that_stop_early_are_continued(
    folder_bank: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stored,) = folder_bank.add(ALICE, [memory("a")])
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, to, at: real(fd, [to[0][:1000]], at))
    (back,) = folder_bank.read_kv(stored.chunk_pks)
    assert torch.equal(back.values, kv_of("a", 5).values)


def test_files_are_withdrawn_when_the_row_fails(folder_bank: Storage, tmp_path: Path) -> None:
    with pytest.raises(MemoryNotFoundError):
        folder_bank.replace(ALICE, "0" * 32, memory("a"))
    assert files_of(tmp_path / "bank") == []


def test_an_interrupt_after_the_commit_keeps_the_files(
    folder_bank: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may arrive between COMMIT and the next line; the row is there, so its file must be."""
    real = os.stat

    def interrupt(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).endswith("bank.sqlite-wal"):  # looked at right after each commit
            raise KeyboardInterrupt
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", interrupt)
        with pytest.raises(KeyboardInterrupt):
            folder_bank.add(ALICE, [memory("a")])
    (stored,) = folder_bank.list_memories(ALICE)
    assert len(folder_bank.read_kv(stored.chunk_pks)) == 1
    assert folder_bank.verify() == []


def test_files_that_cannot_be_removed_are_reported_and_swept_later(
    folder_bank: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = folder_bank.add(ALICE, [memory("a"), memory("b")])
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail_at(os.unlink, errno.EACCES, 1))
        with pytest.raises(StoreError, match=r"are forgotten, but.*memlong doctor --repair"):
            folder_bank.delete(ALICE, [one.id])
        patch.setattr(os, "unlink", fail_at(os.unlink, errno.EACCES, 1))
        new = folder_bank.replace(ALICE, two.id, memory("c"))  # the write counts, with a log line
    assert new.text == "c"
    assert len(files_of(tmp_path / "bank")) == 3
    make_old(tmp_path / "bank")
    assert folder_bank.sweep().files == 2
    assert len(files_of(tmp_path / "bank")) == 1 and folder_bank.verify() == []


def make_old(folder: Path) -> None:
    for path in files_of(folder):
        os.utime(path, (1, 1))


def test_sweeping_takes_old_strays_and_nothing_else(folder_bank: Storage, tmp_path: Path) -> None:
    (stored,) = folder_bank.add(ALICE, [memory("a")])
    (path,) = files_of(tmp_path / "bank")
    make_old(tmp_path / "bank")
    strays = [path.with_name(f"{path.name[:2]}{'0' * 30}{end}") for end in (".safetensors", ".tmp")]
    others = [path.with_name("note.txt"), tmp_path / "bank" / "kv" / "README"]
    for other in strays + others:
        other.write_bytes(b"x")
        other.chmod(0o600)
    assert folder_bank.sweep().files == 0  # young: another process may be about to commit
    make_old(tmp_path / "bank")
    assert len(folder_bank.verify()) == 2
    assert folder_bank.sweep().files == 2
    assert sorted([path, *others]) == files_of(tmp_path / "bank")
    assert len(folder_bank.read_kv(stored.chunk_pks)) == 1


@pytest.mark.parametrize("by_s", [-7200, 7200], ids=["old", "from the future"])
def test_files_of_another_clock_are_swept(folder_bank: Storage, by_s: float) -> None:
    spec = folder_bank._claimed_spec()
    (ref,) = folder_bank._blobs.publish(spec, [kv_of("stray", 5)])
    path = FileBlobs(folder_bank._db.folder).path_of(ref.blob_id)
    assert folder_bank.sweep().files == 0
    os.utime(path, (time.time() + by_s,) * 2)
    assert folder_bank.sweep().files == 1 and not path.exists()


def test_opening_sweeps_at_most_once_in_a_grace_period(tmp_path: Path, clock: Any) -> None:
    folder = tmp_path / "bank"

    def reopened_with_stray() -> bool:
        stray = folder / "kv" / "ab" / f"{'ab' * 16}.safetensors"
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(b"x")
        make_old(folder)
        Storage.open(folder, clock=clock).close()
        return stray.exists()

    Storage.open(folder, clock=clock).close()
    assert reopened_with_stray()
    clock.pass_s(3600)
    assert not reopened_with_stray()
    assert reopened_with_stray()
    clock.pass_s(-7200)  # a clock that was set back must not stop sweeping for hours
    assert not reopened_with_stray()


def test_a_write_fails_whose_files_a_sweep_took_for_strays(
    folder_bank: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was asleep, or a clock that jumped, between publishing and committing."""

    def clock() -> datetime:  # asked when the files are published
        make_old(tmp_path / "bank")
        assert other.sweep().files == 1
        return NOON

    with Storage.open(tmp_path / "bank") as other:
        monkeypatch.setattr(folder_bank, "_clock", clock)
        with pytest.raises(StoreError, match="try again"):
            folder_bank.add(ALICE, [memory("a")])
    assert folder_bank.list_memories(ALICE) == folder_bank.verify() == []


def test_a_sweep_leaves_a_file_whose_row_came_while_it_looked(
    folder_bank: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, committed = threading.Event(), threading.Event()
    sweep, look = threading.Thread(target=folder_bank.sweep), folder_bank._blobs.strays

    def strays(known: Callable[[str], set[str]], grace_s: float) -> list[Path]:
        found = look(known, grace_s)
        assert len(found) == 1
        listed.set()
        assert committed.wait(10)
        return found

    def clock() -> datetime:
        if threading.current_thread() is threading.main_thread() and not listed.is_set():
            make_old(tmp_path / "bank")
            sweep.start()
            assert listed.wait(10)
        return NOON

    monkeypatch.setattr(folder_bank._blobs, "strays", strays)
    monkeypatch.setattr(folder_bank, "_clock", clock)
    folder_bank.add(ALICE, [memory("a")])
    committed.set()
    sweep.join()
    monkeypatch.undo()
    assert folder_bank.verify() == [] and len(folder_bank.list_memories(ALICE)) == 1
