"""`memlong upgrade` on a bank that 0.1.0 wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cli_results import Run

OLD = Path(__file__).parents[1] / "assets" / "banks" / "0.1.0"


def test_upgrade_says_what_it_did_and_where_the_backup_is(memlong: Run, tmp_path: Path) -> None:
    bank = str(shutil.copytree(OLD / "bank", tmp_path / "old"))
    done = memlong("upgrade", "--bank", bank)
    assert done.exit_code == 0 and "m002_forget" in done.stdout
    assert "bank.sqlite.m001_create.bak" in done.stdout
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
