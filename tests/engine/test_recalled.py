"""What one recall hands to the model."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from memlong_agent import MemLong, Recall
from memlong_agent.layout import MemoryLayout
from memlong_agent.storage import Owner
from memlong_agent.testing import tiny_checkpoint


def test_the_priors_of_the_chunks_reach_the_attention_of_every_reader(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", layout=MemoryLayout.memlong(4))
    with MemLong(model, ":memory:", embedder="hash") as ml:
        for text in ("The red kettle is in the shed.", "A blue kettle sings.", "Rain all day."):
            ml.memories(user_id="alice").add(text)
        recalled = ml.engine.recall(
            Owner("default", "user", "alice"), "Where is the red kettle?",
            session="s", turn="t", top_k=8, window_ids=list,
        )  # fmt: skip
    assert recalled.memory is not None
    want = [hit.log_prior for hit in recalled.hits for _ in range(hit.kv.tokens)]
    assert min(want) < max(want) == 0.0
    for placed in recalled.memory.layers.values():
        assert placed.bias is not None
        assert placed.bias.flatten().tolist() == pytest.approx(want)


def test_a_recall_stands_in_a_prompt_that_shows_both_sides_of_it() -> None:
    recall = Recall(
        memory_id="m", chunk=0, text="My dog is Rex.\nAssistant: Noted: your dog is Rex.",
        score=1.0, created_at=datetime.now(UTC),
    )  # fmt: skip
    assert recall.stands_in("User: My dog is Rex. Thanks!\nNoted: your dog is Rex.")
    assert not recall.stands_in("User: My dog is Rex.")
