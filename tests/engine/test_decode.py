"""Decoding across window rebuilds against fresh forward passes over exactly the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from memlong_agent.attention import RecalledMemory
from memlong_agent.config import Sampling
from memlong_agent.engine import Decoder, LiveWindow, Sampler
from memlong_agent.errors import ContextOverflowError
from memlong_agent.layout import MemoryLayout
from memlong_agent.model import MemoryModel, Placement, load_model
from memlong_agent.testing import tiny_checkpoint

LIMIT = 48


@pytest.fixture(scope="module", params=["zero", "contiguous", "far"])
def seam(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MemoryModel, Placement]:
    folder = tiny_checkpoint(
        tmp_path_factory.mktemp("model"), layout=MemoryLayout.memlong(4), policy=request.param
    )
    model, _, policy = load_model(folder, device="cpu")
    return model, Placement(policy, memory_span=64, window_tokens=LIMIT)


def _memory(model: MemoryModel, placement: Placement) -> RecalledMemory:
    chunks = model.encode([list(range(20, 40)), list(range(50, 81))], preamble=[1, 2])
    memory = model.recall(chunks, placement, trace_chunks=True)
    assert memory is not None
    return memory


def _decoder(
    seam: tuple[MemoryModel, Placement], tokens: int, refresh_every: int = 0
) -> tuple[Decoder, list[Sequence[int]]]:
    model, placement = seam
    memory, asked = _memory(model, placement), []

    def refresh(generated: Sequence[int]) -> RecalledMemory:
        asked.append(list(generated))
        return memory

    window = LiveWindow([1, 5, 6], list(range(100, 120)), LIMIT)
    sampler = Sampler(Sampling(temperature=1.0, seed=3))
    decoder = Decoder(
        model, placement.start, window, memory, sampler, frozenset(), tokens, refresh, refresh_every
    )
    return decoder, asked


def test_every_step_equals_a_fresh_forward_across_two_rebuilds(
    seam: tuple[MemoryModel, Placement],
) -> None:
    model, placement = seam
    decoder, asked = _decoder(seam, tokens=70)
    worst, before = 0.0, list(decoder.window.ids)
    for _ in decoder:
        ids = torch.tensor([before])
        with torch.no_grad():
            fresh = model.forward(
                ids, placement.start, memory=_memory(model, placement), last_only=True
            )
        assert decoder.logits is not None
        worst = max(worst, float((decoder.logits - fresh[0, -1]).abs().max()))
        # The next token is chosen over this window, shrunk first when it is full.
        upcoming = LiveWindow(list(decoder.window.prefix), list(decoder.window.rest), LIMIT)
        before = upcoming.ids
    assert len(asked) == 2, "two rebuilds"
    assert worst <= 1e-4
    assert decoder.window.prefix == [1, 5, 6]
    assert decoder.window.dropped > 0


def test_memory_moves_the_logits_and_its_mass_is_reported(
    seam: tuple[MemoryModel, Placement],
) -> None:
    model, placement = seam
    ids = torch.tensor([[1, 5, 6, 100, 101]])
    memory = _memory(model, placement)
    with torch.no_grad():
        on = model.forward(ids, placement.start, memory=memory)
        off = model.forward(ids, placement.start)
    assert (on - off).abs().max() > 1e-4
    total, by_chunk = memory.last_token_mass()[0], memory.last_token_chunk_mass()[0]
    assert 0 < float(total) < 1
    assert by_chunk.shape == (2,)
    assert torch.allclose(by_chunk.sum(), total, atol=1e-5)


def test_refresh_every_asks_again_without_a_rebuild(seam: tuple[MemoryModel, Placement]) -> None:
    decoder, asked = _decoder(seam, tokens=10, refresh_every=4)
    assert len(list(decoder)) == 10
    assert [len(generated) for generated in asked] == [4, 8]
    assert decoder.window.dropped == 0


def test_a_seed_repeats_and_temperature_zero_is_greedy() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    drawn = [Sampler(Sampling(temperature=1.0, seed=9)).next_id(logits) for _ in range(3)]
    assert len(set(drawn)) == 1
    assert Sampler(Sampling()).next_id(logits) == int(logits.argmax())
    best = {
        Sampler(Sampling(temperature=5.0, seed=s, sample_top_k=2)).next_id(logits)
        for s in range(40)
    }
    assert best == set(logits.topk(2).indices.tolist())
    only = {
        Sampler(Sampling(temperature=5.0, seed=s, top_p=1e-6)).next_id(logits) for s in range(20)
    }
    assert only == {int(logits.argmax())}


def test_a_system_prompt_beyond_half_the_window_is_refused_with_both_numbers() -> None:
    with pytest.raises(ContextOverflowError, match="30 of 48"):
        LiveWindow(list(range(30)), [1], LIMIT)
