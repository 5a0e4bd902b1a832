"""Copies of a model's weights, and their mean.

In: a model. Out: its weights and gates by name; back into it goes the mean of some.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memlong_agent.model import MemoryModel

State = dict[str, torch.Tensor]


def snapshot(model: MemoryModel) -> State:
    """A copy of all weights, and of the gates as `gate.LAYER`."""
    return {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}


@torch.no_grad()
def load_mean(model: MemoryModel, states: Sequence[State]) -> None:
    """Set the model to the mean of snapshots, taken in float32; of one snapshot, to that itself."""
    for name, tensor in _tensors(model).items():
        tensor.copy_(torch.stack([state[name].float() for state in states]).mean(0))


def _tensors(model: MemoryModel) -> State:
    gates = {f"gate.{layer}": gate for layer, gate in model.gates.items()}
    return {**model.lm.state_dict(), **gates}
