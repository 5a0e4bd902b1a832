"""Several processes on one bank, and processes that are killed in the middle of a write.

SIGKILL is not a power cut: what the kernel holds survives it. The order of the syncs is tested in
test_blobs.py; that a disk keeps its word after them is not tested anywhere.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_making import ALICE, MODEL, SPEC, kv_of
from postgres_server import PostgresServer

from memlong_agent.storage import Storage, StoredMemory

HERE = Path(__file__).parent
FULL = os.environ.get("MEMLONG_TESTS") == "full"
Run = Callable[[list[dict[str, Any]]], list[int]]

# (stage, whether files without rows must be there after a kill at that stage). None: either.
STAGES = [
    ("before-fdatasync", True),
    ("after-fdatasync", True),
    ("before-rename", True),
    ("after-rename", True),
    ("after-fsync", None),
    ("published", True),
    ("before-commit", None),  # of an add (files are there) or of a delete (none yet)
    ("before-unlink", True),
    ("after-unlink", None),
]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs orders in children of one helper process; their exit statuses."""
    root = HERE.parent.parent
    paths = os.pathsep.join([str(root), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(HERE / "children.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as helper:
        assert helper.stdin is not None and helper.stdout is not None

        def order(orders: list[dict[str, Any]]) -> list[int]:
            print(json.dumps(orders), file=helper.stdin, flush=True)
            answer: list[int] = json.loads(helper.stdout.readline())
            return answer

        yield order
        helper.stdin.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> str | None:
    """Where the rows are: None is in the folder."""
    return request.getfixturevalue("postgres").url() if request.param == "postgres" else None


def test_processes_that_open_a_new_bank_together_lose_nothing(
    run: Run, tmp_path: Path, database: str | None
) -> None:
    folder = tmp_path / "bank"
    order = {"life": "add_and_recall", "folder": str(folder), "database": database, "writes": 12}
    assert run([{**order, "name": f"p{i}"} for i in range(4)]) == [0] * 4
    with Storage.open(folder, database=database) as bank:
        bank.claim(MODEL, SPEC)
        stats = {owner.name: each for owner, each in bank.stats().items()}
        assert {name: each.memories for name, each in stats.items()} == {
            "alice": 24,
            **{f"p{i}": 6 for i in range(4)},
        }
        marks = [age.counter for age in bank.chunk_ages(ALICE)]
        # A process marks nothing only in its first step, before alice has a chunk.
        assert 44 <= sum(marks) <= 48
        assert bank.last_event(ALICE) > 0 and len(bank.events_after(ALICE, 0)) == 48
        assert bank.verify() == []


def test_a_forked_child_may_go_on_using_the_bank(
    run: Run, tmp_path: Path, database: str | None
) -> None:
    order = {"life": "use_across_fork", "folder": str(tmp_path / "bank"), "database": database}
    assert run([order]) == [0]


def replay(log: Path) -> tuple[dict[str, list[str]], set[str]]:
    """What the child reported as done, by id; and ids whose last operation was under way."""
    held: dict[str, list[str]] = {}
    open_: set[str] = set()
    for word, memory_id, *texts in map(json.loads, log.read_text().splitlines()):
        if word in ("deleting", "replacing"):
            open_.add(memory_id)
            continue
        open_.discard(memory_id)
        if word == "holds":
            held[memory_id] = texts
        else:
            del held[memory_id]
    return held, open_


def check_bank(
    folder: Path, held: dict[str, list[str]], unsure: set[str], database: str | None = None
) -> int:
    """Every reported memory is there with its K/V; returns how many files had no row.

    Opening sweeps what the dead child left.
    """
    files = kv_files(folder)
    with Storage.open(folder, database=database, grace_s=0) as bank:
        assert bank.verify() == []
        left = kv_files(folder)
        there = {each.id: each for each in bank.list_memories(ALICE)}
        assert len(left) == sum(each.chunks for each in there.values())
        # A commit whose report was cut off: one memory more at most, or one of the unsure.
        assert len(set(there) - set(held)) <= 1
        check_held(bank, there, held, unsure)
    return len(files - left)


def kv_files(folder: Path) -> set[Path]:
    return {path for path in (folder / "kv").rglob("*") if path.is_file()}


def check_held(
    bank: Storage, there: dict[str, StoredMemory], held: dict[str, list[str]], unsure: set[str]
) -> None:
    """What a victim reported is in the bank, each text with its own K/V."""
    assert set(held) - unsure <= set(there)
    for memory_id in set(held) - unsure:
        pks = there[memory_id].chunk_pks
        texts = [each.text for each in bank.chunks(ALICE, pks)]
        assert texts == held[memory_id]
        for text, kv in zip(texts, bank.read_kv(pks), strict=True):
            assert torch.equal(kv.keys, kv_of(text, 5).keys)


@pytest.mark.parametrize(("stage", "leaves_files"), STAGES)
def test_kills_inside_a_write_lose_nothing(
    run: Run, tmp_path: Path, stage: str, leaves_files: bool | None
) -> None:
    """Four kills at each stage, nine stages: the child ends itself at the exact place, or goes on
    while its parent, told of the place, ends it."""
    for seed, (count, from_outside) in enumerate([(1, False), (6, False), (17, False), (9, True)]):
        folder, log = tmp_path / str(seed), tmp_path / f"{seed}.log"
        with Storage.open(folder) as bank:
            bank.claim(MODEL, SPEC)
        log.touch()
        victim = {"life": "life_of_a_victim", "folder": str(folder), "log": str(log)}
        order = {**victim, "stage": stage, "count": count, "seed": seed}
        assert run([{**order, "from_outside": from_outside}]) == [-9]
        strays = check_bank(folder, *replay(log))
        if leaves_files and not from_outside:
            assert strays > 0


def test_three_writers_are_killed_at_once(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    with Storage.open(folder) as bank:
        bank.claim(MODEL, SPEC)
    orders = []
    for seed, stage in enumerate(("before-commit", "after-rename", "before-unlink")):
        log = tmp_path / f"{seed}.log"
        log.touch()
        victim = {"life": "life_of_a_victim", "folder": str(folder), "log": str(log)}
        orders.append({**victim, "stage": stage, "count": 12, "seed": seed})
    assert run(orders) == [-9] * 3
    with Storage.open(folder, grace_s=0) as bank:
        assert bank.verify() == []
        there = {each.id for each in bank.list_memories(ALICE)}
        for order in orders:
            held, unsure = replay(Path(order["log"]))
            assert held and set(held) - unsure <= there


@pytest.mark.timeout(3600)
def test_four_processes_are_killed_inside_writes_again_and_again(
    run: Run, tmp_path: Path, database: str | None
) -> None:
    """Four writers on one bank end themselves at random places of a write while a fifth process
    reads all there is. 24 kills, 12 on PostgreSQL; MEMLONG_TESTS=full makes it 208 on each."""
    folder, chance = tmp_path / "bank", random.Random(0)
    bank = {"folder": str(folder), "database": database}
    with Storage.open(folder, database=database) as made:
        made.claim(MODEL, SPEC)
    logs: list[Path] = []
    ends: Counter[int] = Counter()
    strays = 0
    for number in range(52 if FULL else 3 if database else 6):
        orders = []
        for each in range(4):
            logs.append(tmp_path / f"{number}-{each}.log")
            logs[-1].touch()
            victim = {"life": "life_of_a_victim", **bank, "log": str(logs[-1])}
            where = {"stage": chance.choice(STAGES)[0], "count": chance.randint(1, 9)}
            orders.append({**victim, **where, "seed": len(logs), "purge": each == 0})
        *killed, watched = run([*orders, {"life": "watch", **bank, "passes": 5}])
        assert (killed, watched) == ([-9] * 4, 0)
        ends.update(killed)
        strays += check_shared(folder, logs, database)
    sys.stdout.write(f"{ends[-9]} kills, {strays} files without rows, all swept\n")
    assert strays > 0


def check_shared(folder: Path, logs: list[Path], database: str | None) -> int:
    """All that each victim reported is there with its K/V, no row without file, no stray; returns
    how many files had no row before they were swept."""
    found = kv_files(folder)
    with Storage.open(folder, database=database, grace_s=0) as bank:
        bank.sweep()
        assert bank.verify() == []
        files = kv_files(folder)
        there = {each.id: each for each in bank.list_memories(ALICE)}
        assert len(files) == sum(each.chunks for each in there.values())
        for held, unsure in map(replay, logs):
            check_held(bank, there, held, unsure)
    return len(found - files)


@pytest.mark.parametrize("stage", ["published", "before-commit", "before-unlink"])
def test_kills_inside_a_write_to_postgres_lose_nothing(
    run: Run, tmp_path: Path, postgres: PostgresServer, stage: str
) -> None:
    for seed, (count, from_outside) in enumerate([(1, False), (9, False), (9, True)]):
        folder, log, url = tmp_path / str(seed), tmp_path / f"{seed}.log", postgres.url()
        with Storage.open(folder, database=url) as bank:
            bank.claim(MODEL, SPEC)
        log.touch()
        victim = {"life": "life_of_a_victim", "folder": str(folder), "database": url}
        order = {**victim, "log": str(log), "stage": stage, "count": count, "seed": seed}
        assert run([{**order, "from_outside": from_outside}]) == [-9]
        check_bank(folder, *replay(log), url)
