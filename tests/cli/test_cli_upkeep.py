"""`memlong upgrade` on a bank that 0.1.0 wrote, and `memlong rebuild` for another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_results import KEY, Run, line_of, objects, ok

from memlong_agent import MemLong
from memlong_agent.layout import MemoryLayout
from memlong_agent.testing import tiny_checkpoint

OLD = Path(__file__).parents[1] / "assets" / "banks" / "0.1.0"


def test_upgrade_says_what_it_did_and_where_the_backup_is(memlong: Run, tmp_path: Path) -> None:
    bank = str(shutil.copytree(OLD / "bank", tmp_path / "old"))
    done = memlong("upgrade", "--bank", bank)
    assert done.exit_code == 0 and "m002_forget" in done.stdout
    assert "bank.sqlite.m001_create.bak" in done.stdout
    assert "deleted as soon as anything is\nforgotten" in done.stdout
    again = memlong("upgrade", "--bank", bank)
    assert again.exit_code == 0 and "is up to date" in again.stdout


def test_upgrade_as_json(memlong: Run, tmp_path: Path) -> None:
    bank = str(shutil.copytree(OLD / "bank", tmp_path / "old"))
    record = json.loads(memlong("upgrade", "--bank", bank, "--json").stdout)
    assert record["before"] == "m001_create" and record["steps"][0] == "m002_forget"
    assert Path(record["backup"]).is_file()
    again = json.loads(memlong("upgrade", "--bank", bank, "--json").stdout)
    assert (again["steps"], again["backup"]) == ([], None)


def test_an_old_bank_is_refused_with_the_command_that_upgrades_it(
    memlong: Run, tmp_path: Path
) -> None:
    bank = str(shutil.copytree(OLD / "bank", tmp_path / "old"))
    refused = memlong("stats", "--bank", bank)
    assert refused.exit_code == 2 and f"memlong upgrade --bank {bank}" in refused.stderr


def test_upgrade_without_a_bank_is_a_mistake(memlong: Run, tmp_path: Path) -> None:
    missing = memlong("upgrade", "--bank", str(tmp_path / "absent"))
    assert missing.exit_code == 2 and "no bank at" in missing.stderr
    assert not (tmp_path / "absent").exists()


def test_rebuild_makes_a_bank_usable_for_another_model(
    memlong: Run, noted: str, tmp_path: Path
) -> None:
    other = str(tiny_checkpoint(tmp_path / "other", layout=MemoryLayout.memlong(4), seed=1))
    refused = line_of(memlong("list", "--model", other))
    assert "weights up to the memory layer" in refused and "memlong rebuild --bank" in refused
    done = ok(memlong("rebuild", "--model", other))
    assert "1 memory, 1 chunk" in done and "weights up to the memory layer" in done
    [memory] = objects(memlong("list", "--model", other, "--json"))
    assert (memory["id"], memory["text"].strip()) == (noted, KEY)


def test_rebuild_of_vectors_and_its_json(memlong: Run, noted: str) -> None:
    [record] = objects(memlong("rebuild", "--vectors", "--embedder", "lexical", "--json"))
    assert (record["memories"], record["resumed"]) == (1, False)
    assert record["changes"][0].startswith("embedder: lexical here, hash")
    refused = line_of(memlong("search", "spare key"))
    assert "memlong rebuild --vectors" in refused
    assert noted in ok(memlong("search", "spare key", "--embedder", "lexical"))


def test_rebuild_of_what_is_no_bank_is_a_mistake(memlong: Run, tmp_path: Path) -> None:
    assert "no bank at" in line_of(memlong("rebuild", "--bank", str(tmp_path / "absent")))
    both = line_of(memlong("rebuild", "--vectors", "--chunk-tokens", "64"))
    assert "--chunk-tokens" in both


@pytest.mark.parametrize(
    ("vectors", "on_server"),
    [(False, False), (True, False), (False, True)],
    ids=["sqlite", "vectors", "postgres"],
)
def test_doctor_of_an_unfinished_rebuild_says_what_to_do(
    memlong: Run,
    note: str,
    model: Path,
    tmp_path: Path,
    vectors: bool,
    on_server: bool,
    request: pytest.FixtureRequest,
) -> None:
    bank = tmp_path / "bank"
    url = request.getfixturevalue("postgres").url() if on_server else None
    where = ("--database", url) if url else ()
    ok(memlong("add", note, *where))

    def stopped(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MemLong.rebuild(
            model, bank, database=url, vectors=vectors, embedder="hash", on_progress=stopped
        )
    again = ("rebuild", "--vectors") if vectors else ("rebuild",)
    command = f"memlong {' '.join(again)} --bank {bank}" + (" --database URL" if url else "")
    command += " --embedder NAME" if vectors else " --model NAME"
    for asked in (("doctor",), ("doctor", "--repair")):
        line = line_of(memlong(*asked, *where))
        assert "its rebuild was interrupted" in line and line.endswith(command)
    assert "interrupted rebuild" in ok(memlong(*again, *where))
    ok(memlong("doctor", *where))
