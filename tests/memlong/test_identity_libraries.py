"""Identity under the libraries that change a loaded model: PEFT's adapters, torchao's weights.

They are not needed for anything else, so each test skips where its library is missing:
`pip install peft torchao`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from memlong_agent import IncompatibleMemoryError, MemLong
from memlong_agent.layout import MemoryLayout
from memlong_agent.testing import tiny_checkpoint

TOLD = "My dog is called Rex."
WEIGHTS = "weights up to the memory layer"
# Their imports warn of each other's futures.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose memory layer is 1."""
    folder = tmp_path_factory.mktemp("base") / "model"
    return tiny_checkpoint(folder, "qwen3", layout=MemoryLayout.memlong(4, 1), head_dim=16)


def written(bank: Path, model: Path, **model_kwargs: Any) -> None:
    with MemLong(model, bank, embedder="hash", model_kwargs=model_kwargs) as ml:
        ml.memories(user_id="alice").add(TOLD)


def accepted(bank: Path, model: Path, **model_kwargs: Any) -> None:
    with MemLong(model, bank, embedder="hash", model_kwargs=model_kwargs) as ml:
        reply = ml.session("s", user_id="alice").chat("What is my dog called?", max_tokens=1)
        assert [recall.text for recall in reply.recalled] == [TOLD]


def refused(bank: Path, model: Path, *names: str, **model_kwargs: Any) -> None:
    with pytest.raises(IncompatibleMemoryError) as error:
        MemLong(model, bank, embedder="hash", model_kwargs=model_kwargs)
    assert all(f"{name}: " in str(error.value) for name in names), error.value


class Adapters:
    """Folders with one and the same LoRA beside a checkpoint, active at the strength asked for."""

    def __init__(self, base: Path, folder: Path, layers: list[int]) -> None:
        peft = pytest.importorskip("peft", reason="needs peft")
        wanted = peft.LoraConfig(
            r=2,
            lora_alpha=4,
            target_modules=["k_proj", "v_proj"],
            layers_to_transform=layers,
            init_lora_weights=False,
        )
        self._base, self._folder = base, folder
        self._model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), wanted)
        self._model.save_pretrained(folder / "adapter")

    def active(self, name: str, **changes: Any) -> Path:
        made = Path(shutil.copytree(self._base, self._folder / name))
        shutil.copytree(self._folder / "adapter", made, dirs_exist_ok=True)
        path = made / "adapter_config.json"
        found = {**json.loads(path.read_text()), "base_model_name_or_path": str(self._base)}
        path.write_text(json.dumps({**found, **changes}))
        return made

    def merged(self) -> Path:
        made = Path(shutil.copytree(self._base, self._folder / "merged"))
        (made / "model.safetensors").unlink()
        self._model.merge_and_unload().save_pretrained(made)
        return made


def test_lora_is_refused_merged_active_and_at_another_strength(base: Path, tmp_path: Path) -> None:
    adapters = Adapters(base, tmp_path, [0, 1])
    written(tmp_path / "plain", base)
    active = adapters.active("active")
    refused(tmp_path / "plain", active, WEIGHTS)
    written(tmp_path / "adapted", active)
    accepted(tmp_path / "adapted", adapters.active("again"))
    refused(tmp_path / "adapted", base, WEIGHTS)
    refused(tmp_path / "adapted", adapters.active("stronger", lora_alpha=8), "layer settings")
    refused(tmp_path / "plain", adapters.merged(), WEIGHTS)


def test_lora_above_the_memory_layer_is_accepted(base: Path, tmp_path: Path) -> None:
    written(tmp_path / "plain", base)
    accepted(tmp_path / "plain", Adapters(base, tmp_path, [2, 3]).active("active"))


def test_quantized_weights_are_refused_and_their_own_accepted(base: Path, tmp_path: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="needs torchao")
    from transformers import TorchAoConfig

    def eight_bits() -> Any:
        return TorchAoConfig(torchao.Int8WeightOnlyConfig())

    written(tmp_path / "plain", base)
    refused(tmp_path / "plain", base, WEIGHTS, "quantization", quantization_config=eight_bits())
    written(tmp_path / "eight", base, quantization_config=eight_bits())
    accepted(tmp_path / "eight", base, quantization_config=eight_bits())
    refused(tmp_path / "eight", base, WEIGHTS, "quantization")
