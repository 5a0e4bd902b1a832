"""The mean of snapshots, against arithmetic done by hand."""

from __future__ import annotations

import torch

from memlong_agent.training.average import load_mean, snapshot
from memlong_agent.training.settings import TrainSettings
from memlong_agent.training.train import new_model


def test_the_mean_is_of_all_weights_and_gates_and_a_snapshot_is_a_copy() -> None:
    settings = TrainSettings(hidden_size=32, layers=4, heads=2, feed_forward=32)
    model = new_model(settings, vocabulary=64)
    states = [snapshot(model)]
    with torch.no_grad():
        for tensor in (*model.lm.parameters(), *model.gates.values()):
            tensor += 0.5
    states.append(snapshot(model))
    load_mean(model, states)
    for name, mean in snapshot(model).items():
        before, after = (state[name].float() for state in states)
        assert not torch.equal(before, after)
        torch.testing.assert_close(mean.float(), (before + after) / 2, rtol=2**-8, atol=1e-6)
    load_mean(model, states[:1])
    assert all(torch.equal(found, states[0][name]) for name, found in snapshot(model).items())


def test_points_of_the_mean_are_those_of_a_late_round_s_base_phase() -> None:
    settings = TrainSettings()
    steps = range(1, 2001)
    assert [step for step in steps if settings.is_averaged("base", 4, step)] == [300, 1000]
    assert not any(settings.is_averaged("base", 3, step) for step in steps)
    assert not any(settings.is_averaged("memory", 4, step) for step in steps)
