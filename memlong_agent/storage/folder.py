"""The folder of a bank: made, or recognised, before anything in it is opened."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from memlong_agent.errors import StoreError
from memlong_agent.storage import faults
from memlong_agent.storage.sqlite import FILE


def make_folder(path: Path) -> None:
    """Create an empty bank folder, or accept one that is a bank already.

    Raises:
        StoreError: the path is a file, holds other things, or cannot be written.
    """
    try:
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file, a bank is a folder. Give the path of a folder.")
        os.makedirs(path, mode=0o700, exist_ok=True)
        names = {entry.name for entry in path.iterdir()}
        if FILE not in names:
            if names - {"bank.lock", "kv"}:
                raise StoreError(
                    f"{path} is not a memory bank: it holds {min(names)!r} and no {FILE}. "
                    "Give an empty or a new folder."
                )
            path.chmod(0o700)
            # Made by hand once, for its mode; log and shared memory inherit it from SQLite.
            with suppress(FileExistsError):
                os.close(os.open(path / FILE, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        (path / "kv").mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise faults.from_os(exc, str(path)) from exc
