"""Calls that change a bank as a whole and want it for themselves, for the crash tests."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from bank_copies import copied_bank
from crash_bank import OTHER, Clock, Turned, other_kv_of
from crash_operations import Operation
from memory_drafts import SPEC

from memlong_agent.identity import Identity
from memlong_agent.memlong.rebuild import Rebuild
from memlong_agent.storage import Key, NewChunk, Old, Rebuilding
from memlong_agent.storage.conversion import change_key, encrypt
from memlong_agent.storage.kvfile import spec_from_json
from memlong_agent.storage.upgrade import upgrade

KEY, NEW_KEY = Key(bytes(32)), Key(b"k" * 32)
_RELEASED = Path(__file__).parent.parent / "assets" / "banks" / "0.1.0" / "bank"
_AT_ONCE = 3  # chunks: several batches


def _rebuilt(place: Path, clock: Clock) -> None:
    """For the other model."""
    with Rebuilding.open(place / "bank", clock=clock) as bank:
        bank.begin("encoding", OTHER, SPEC)
        while batch := bank.memories(_AT_ONCE):
            bank.encode([(old, _encoded(old)) for old in batch])
        bank.finish()


def _encoded(old: Old) -> list[NewChunk]:
    return [
        NewChunk(
            header=each.header,
            text=each.text,
            token_ids=each.token_ids,
            kv=other_kv_of(each.text, each.tokens),
            vector=old.vectors.get(each.pk),
            ordinal=each.ordinal,
            counter=each.counter,
            last_recalled_at=each.last_recalled_at,
        )
        for each in old.chunks
    ]


def _embedded(place: Path, clock: Clock) -> None:
    """For the other embedder."""
    with Rebuilding.open(place / "bank", clock=clock) as bank:
        Rebuild(bank, None).embed(Turned())


def _release(place: Path, clock: Clock) -> None:
    """Put a bank that 0.1.0 wrote in the place."""
    shutil.rmtree(place / "bank")
    copied_bank(_RELEASED, place / "bank")


def _released() -> dict[str, Any]:
    """How the bank that 0.1.0 wrote is opened."""
    with closing(
        sqlite3.connect(f"file:{_RELEASED / 'bank.sqlite'}?immutable=1", uri=True)
    ) as conn:
        meta = dict(conn.execute("SELECT key, value FROM meta"))
    encoding, spec = Identity(json.loads(meta["encoding"])), spec_from_json(meta["kv_spec"])
    return {"encoding": encoding, "spec": spec, "embedder": "hash"}


def encrypted(place: Path, clock: Clock) -> None:
    encrypt(place / "bank", KEY)


WHOLE: dict[str, Operation] = {
    "rebuild": Operation(
        on_folder=_rebuilt,
        left=[{"encoding": OTHER}],
        refused="which goes on where it stopped: memlong rebuild --bank",
    ),
    "rebuild vectors": Operation(
        on_folder=_embedded,
        left=[{"embedder": Turned()}],
        refused="which goes on where it stopped: memlong rebuild --vectors --bank",
    ),
    "upgrade": Operation(
        on_folder=lambda place, clock: upgrade(place / "bank", clock=clock),
        start=_release,
        options=_released(),
        refused="memlong upgrade",
    ),
    "encrypt": Operation(on_folder=encrypted, left=[{"key": KEY}]),
    "change the key": Operation(
        on_folder=lambda place, clock: change_key(place / "bank", KEY, NEW_KEY),
        start=encrypted,
        options={"key": KEY},
        left=[{"key": NEW_KEY}],
    ),
}
