"""Banks that released versions wrote are opened by today's build: nothing in them is lost.

Each lies under tests/assets/banks/<version> with the model that wrote it and what it held.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from bank_copies import copied_bank
from make_bank import BANKS, seen

from memlong_agent import MemLong

RELEASES = sorted(path.name for path in BANKS.iterdir())


def test_there_is_a_bank_to_open() -> None:
    assert "0.1.0" in RELEASES


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of one release's folder."""
    return copied_bank(BANKS / request.param, tmp_path / "release")


def opened(release: Path, expected: dict[str, Any]) -> MemLong:
    return MemLong(
        release / "model",
        release / "bank",
        device="cpu",
        embedder="hash",
        clock=lambda: datetime.fromisoformat(expected["now"]),
        **expected["settings"],
    )


def without_scores(recalls: list[list[Any]]) -> list[list[Any]]:
    return [[each[:3] for each in ranked] for ranked in recalls]


def unexpired(memories: dict[str, list[Any]], now: str) -> dict[str, list[Any]]:
    """By owner; what had expired is deleted when a bank is opened."""
    return {
        owner: [each for each in held if not each["expires_at"] or each["expires_at"] > now]
        for owner, held in memories.items()
    }


def test_all_is_there_after_the_upgrade(release: Path) -> None:
    expected = json.loads((release / "expected.json").read_text())
    MemLong.upgrade(release / "bank")
    with opened(release, expected) as ml:
        found = json.loads(json.dumps(seen(ml, expected["owners"], expected["questions"])))
        kept = unexpired(expected["memories"], expected["now"])
        assert found["memories"] == kept != expected["memories"]  # K/V too, by their digests
        assert found["items"] == expected["items"]
        assert without_scores(found["recalls"]) == without_scores(expected["recalls"])
        for now, then in zip(found["recalls"], expected["recalls"], strict=True):
            assert [each[3] for each in now] == pytest.approx([each[3] for each in then], abs=1e-3)
        diagnosis = ml.doctor()
        assert diagnosis.problems == ()
