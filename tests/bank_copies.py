"""Copies of the banks under tests/assets, as private as a bank is."""

from __future__ import annotations

import shutil
from pathlib import Path


def copied_bank(source: Path, folder: Path) -> Path:
    """`folder`, now a copy of the bank `source`; a checkout keeps no modes, so they are set."""
    shutil.copytree(source, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    return folder
