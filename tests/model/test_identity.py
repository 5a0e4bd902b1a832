"""The encoding identity: changed by what K/V depend on, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memlong_agent.identity import Identity
from memlong_agent.layout import MemoryLayout
from memlong_agent.model import MemoryModel, load_model
from memlong_agent.model.identity import encoding_identity
from memlong_agent.testing import tiny_checkpoint
from memlong_agent.training.batches import Row, collate
from memlong_agent.training.step import MasterAdamW, freeze, loss_of

LAYOUT = MemoryLayout.memlong(4)  # memory layer 1, read by 2 and 3


def _load(folder: Path) -> tuple[MemoryModel, Identity]:
    model, tokenizer, _ = load_model(folder, device="cpu")
    return model, encoding_identity(model, tokenizer, "v1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "model", layout=LAYOUT, dtype=torch.bfloat16)


def _tune(model: MemoryModel, parameters: list[torch.nn.Parameter]) -> None:
    """Twenty optimizer steps of the memory phase on made-up rows."""
    rows = [
        Row(
            ((20, 21, 22 + n), (30, 31)),
            (0.0, -1.5),
            (1, 40, 41, 22 + n),
            (0.0, 1.0, 1.0, 4.0),
            (False, False, False, True),
        )
        for n in range(4)
    ]
    batch = collate(rows, [1, 7], 0)
    optimizer = MasterAdamW(parameters, 0.0)
    for _ in range(20):
        loss_of(model, batch, phase="memory").backward()  # type: ignore[no-untyped-call]
        optimizer.step(1e-2)


def test_twenty_steps_of_the_memory_phase_leave_kv_and_identity_as_they_were(folder: Path) -> None:
    model, before = _load(folder)
    _, tokenizer, _ = load_model(folder, device="cpu")
    text = [[20, 21, 22, 23], [33, 34]]
    kv = model.encode(text, [1])
    upper = model.lm.get_decoder().layers[3].mlp.up_proj.weight.clone()
    _tune(model, freeze(model, "memory"))
    again = model.encode(text, [1])
    assert all(
        torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
        for a, b in zip(kv, again, strict=True)
    )
    assert encoding_identity(model, tokenizer, "v1") == before
    assert not torch.equal(model.lm.get_decoder().layers[3].mlp.up_proj.weight, upper), (
        "nothing was tuned"
    )


def test_the_control_with_layer_0_unfrozen_changes_both(folder: Path) -> None:
    model, before = _load(folder)
    _, tokenizer, _ = load_model(folder, device="cpu")
    kv = model.encode([[20, 21, 22, 23]], [1])[0]
    parameters = freeze(model, "memory")
    layer0 = list(model.lm.get_decoder().layers[0].parameters())
    for parameter in layer0:
        parameter.requires_grad_(True)
    _tune(model, parameters + layer0)
    assert not torch.equal(model.encode([[20, 21, 22, 23]], [1])[0].keys, kv.keys)
    names = [
        line.split(":")[0] for line in encoding_identity(model, tokenizer, "v1").differences(before)
    ]
    assert names == ["weights up to the memory layer"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("weights up to the memory layer", {"seed": 1}),
        ("memory layers", {"layout": MemoryLayout.memlong(4, 2)}),
        ("compute dtype", {"dtype": torch.float32}),
        ("RoPE", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    ],
)
def test_what_kv_depend_on_is_named(
    folder: Path, tmp_path: Path, name: str, change: dict[str, object]
) -> None:
    other = tiny_checkpoint(
        tmp_path / "other", **{"layout": LAYOUT, "dtype": torch.bfloat16, **change}
    )
    differing = [line.split(":")[0] for line in _load(folder)[1].differences(_load(other)[1])]
    assert name in differing


def test_upper_layers_gates_template_and_a_resaved_tokenizer_are_not_part_of_it(
    folder: Path,
) -> None:
    model, before = _load(folder)
    _, tokenizer, _ = load_model(folder, device="cpu")
    decoder = model.lm.get_decoder()
    for parameter in [
        *decoder.layers[2].parameters(),
        *decoder.layers[3].parameters(),
        *decoder.norm.parameters(),
    ]:
        parameter.add_(1.0)
    decoder.layers[1].mlp.up_proj.weight.add_(1.0)  # above layer 1's projections
    decoder.layers[1].self_attn.q_proj.weight.add_(1.0)
    tokenizer.chat_template = "other"
    tokenizer.save_pretrained(folder)
    _, resaved, _ = load_model(folder, device="cpu")
    assert encoding_identity(model, resaved, "v1") == before
