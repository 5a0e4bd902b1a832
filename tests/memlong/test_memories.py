"""Adding, searching, changing and forgetting memories; and opening banks that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from memlong_agent import (
    ConfigError,
    IncompatibleMemoryError,
    MemLong,
    MemoryNotFoundError,
    StoreCorruptError,
    StoreError,
    UnsupportedModelError,
)
from memlong_agent.layout import MemoryLayout
from memlong_agent.testing import tiny_checkpoint

Open = Callable[..., MemLong]


PARAGRAPH = "The harbor of Tarn is called Velmor. Ships lie there in winter.\n\n"


def test_a_document_is_read_in_sections_once_and_found(open_memlong: Open) -> None:
    memories = open_memlong().memories(user_id="alice")
    text = "".join(f"Paragraph {n} is about thing {n}. " + PARAGRAPH for n in range(60))
    seen: list[int] = []
    written = memories.add([text[:500], text[500:]], source="tarn.txt", on_progress=seen.append)
    assert "".join(memory.text for memory in written) == text
    assert len(written) > 1 and seen[-1] == len(text)
    assert [memory.id for memory in memories.add(text, source="tarn.txt")] == [
        memory.id for memory in written
    ]
    assert memories.search("harbor of Tarn", top_k=1)[0].source == "tarn.txt"


def test_add_get_update_delete_clear(open_memlong: Open) -> None:
    memories = open_memlong().memories(user_id="alice")
    (said,) = memories.add("My dog is called Rex.", metadata={"k": 1})
    (turn,) = memories.add(
        [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Noted."}]
    )
    assert memories.get(said.id).metadata == {"k": 1}
    changed = memories.update(said.id, "My dog is called Bello.")
    assert changed.id == said.id and changed.metadata == {"k": 1}
    assert [recall.text for recall in memories.search("dog called", top_k=1)] == [
        "My dog is called Bello."
    ]
    assert memories.delete(said.id).memories == 1
    assert [memory.id for memory in memories.list()] == [turn.id]
    assert not any("Bello" in recall.text for recall in memories.search("dog called Bello"))
    assert memories.clear().memories == 1 and memories.list() == []


def test_a_document_without_a_source_stays_one_when_it_changes(open_memlong: Open) -> None:
    memories = open_memlong().memories(user_id="alice")
    (section,) = memories.add(iter(["The mill of Tarn ", "burned down."]))
    changed = memories.update(section.id, "The mill of Tarn was built again.")
    assert (section.role, changed.role) == ("document", "document")


def test_a_search_can_be_narrowed_to_a_session(open_memlong: Open) -> None:
    ml = open_memlong()
    for session in ("monday", "friday"):
        ml.memories(user_id="alice", session_id=session).add(f"The dog barked on {session}.")
    found = ml.memories(user_id="alice").search("dog barked", session_id="friday")
    assert [recall.session_id for recall in found] == ["friday"]


def test_unknown_ids_delete_nothing(open_memlong: Open) -> None:
    memories = open_memlong().memories(user_id="alice")
    (said,) = memories.add("My dog is called Rex.")
    for call in (
        lambda: memories.delete([said.id, "0" * 32]),
        lambda: memories.get("x"),
        lambda: memories.update("x", "y"),
    ):
        with pytest.raises(MemoryNotFoundError):
            call()
    assert len(memories.list()) == 1


def test_ten_megabytes_in_one_line_are_chunked(open_memlong: Open) -> None:
    """A tenth of it here; the whole takes the random model a minute."""
    memories = open_memlong(chunk_tokens=1024, embedder="lexical").memories(user_id="alice")
    line = "x" * 40_000 + " " + "y" * 60_000
    assert "".join(memory.text for memory in memories.add(line, source="line.txt")) == line


def test_a_bank_of_another_model_or_embedder_is_refused_by_name(
    open_memlong: Open, tmp_path: Path
) -> None:
    open_memlong().memories(user_id="alice").add("My dog is called Rex.")
    other = tiny_checkpoint(tmp_path / "other", layout=MemoryLayout.memlong(4), seed=1)
    with pytest.raises(IncompatibleMemoryError, match="weights up to the memory layer"):
        open_memlong(model=other)
    with pytest.raises(IncompatibleMemoryError, match="compute dtype"):
        open_memlong(dtype=torch.bfloat16)
    with pytest.raises(IncompatibleMemoryError, match="embedder"):
        open_memlong(embedder="lexical")
    assert len(open_memlong().memories(user_id="alice").list()) == 1


def test_a_damaged_kv_file_is_named_and_never_recalled(open_memlong: Open, tmp_path: Path) -> None:
    ml = open_memlong()
    ml.memories(user_id="alice").add("My dog is called Rex.")
    (file,) = (tmp_path / "bank" / "kv").rglob("*.safetensors")
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(StoreCorruptError, match=file.name):
        ml.session("a", user_id="alice").chat("What is my dog called?", max_tokens=4)
    assert any(file.name in problem for problem in ml.doctor().problems)


def test_doctor_finds_a_whole_bank_whose_memory_is_used(open_memlong: Open) -> None:
    ml = open_memlong()
    ml.memories(user_id="alice").add("My dog is called Rex.")
    found = ml.doctor()
    assert found.healthy and found.memories == 1 and found.logit_difference > 0
    assert "weights up to the memory layer" in found.encoding and found.bank_bytes > 4096


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"bank": None}, ConfigError, ":memory:"),
        ({"topk": 3}, ConfigError, "topk"),
        ({"top_k": 0}, ConfigError, "top_k"),
        ({"top_k": -1}, ConfigError, "top_k"),
        ({"model": "no/such/folder"}, UnsupportedModelError, "no/such/folder"),
        ({"window_tokens": 4096}, ConfigError, "limit is 2048"),
        ({"embedder": "/no/such/embedder"}, ConfigError, "no folder"),
    ],
)
def test_wrong_options_are_one_sentence(
    open_memlong: Open, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        open_memlong(**options)


def test_unsupported_families_are_refused_before_weights_are_read(
    open_memlong: Open, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UnsupportedModelError, match=r"'gpt2'.*llama, mistral, qwen2, qwen3"):
        open_memlong(model=tmp_path)


def test_a_bank_path_that_is_a_file_is_refused(open_memlong: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="file"):
        open_memlong(bank=tmp_path / "file")


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_stock_checkpoints_get_the_per_layer_layout_and_remember(
    open_memlong: Open, tmp_path: Path, family: Any
) -> None:
    ml = open_memlong(model=tiny_checkpoint(tmp_path / family, family, sliding_window=None))
    ml.session("a", user_id="alice").chat("My dog is called Rex.", max_tokens=4)
    reply = ml.session("b", user_id="alice").chat("What is my dog called?", max_tokens=4)
    assert ml.engine.model.layout.name == "per-layer" and ml.engine.placement.policy == "contiguous"
    assert len(reply.recalled) == 1 and reply.attention_mass > 0


def test_a_model_whose_layers_all_slide_must_hold_window_and_memory(
    open_memlong: Open, tmp_path: Path
) -> None:
    folder = tiny_checkpoint(tmp_path / "sliding", "mistral", sliding_window=512)
    with pytest.raises(ConfigError, match=r"slides over 512.*need 1280"):
        open_memlong(model=folder, window_tokens=256)
    assert (
        open_memlong(model=folder, window_tokens=128, top_k=2).engine.placement.memory_span == 256
    )
