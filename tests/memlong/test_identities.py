"""Which changes of a checkpoint a bank refuses, by name, and which ones it accepts.

Every case is a real saved checkpoint, opened over a bank that the unchanged one wrote.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from memlong_agent import IncompatibleMemoryError, MemLong
from memlong_agent.layout import MemoryLayout
from memlong_agent.memlong import loading
from memlong_agent.model import load_model
from memlong_agent.model.identity import encoding_identity
from memlong_agent.testing import tiny_checkpoint
from memlong_agent.training.tokenizer import train_tokenizer

LAYOUT = MemoryLayout.memlong(4, 1)  # memory layer 1, read by 2 and 3
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a bank that it wrote."""
    folder = tmp_path_factory.mktemp("base")
    tiny_checkpoint(folder / "model", "qwen3", layout=LAYOUT, head_dim=16)
    with MemLong(folder / "model", folder / "bank", embedder="hash") as ml:
        ml.memories(user_id="alice").add("My dog is called Rex.")
    return folder


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


def edited(name: str, change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change a JSON file of the checkpoint."""

    def apply(folder: Path) -> None:
        path = folder / name
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return apply


def weights(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Change the tensors whose names hold `part`."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        hit = [name for name in tensors if part in name]
        assert hit
        changed = {name: change(tensors[name]).contiguous() for name in hit}
        save_file({**tensors, **changed}, path, metadata={"format": "pt"})

    return apply


def lora(weight: torch.Tensor) -> torch.Tensor:
    made = torch.Generator().manual_seed(7)
    a = torch.randn(weight.shape[0], 2, generator=made)
    return weight + 1e-3 * a @ torch.randn(2, weight.shape[1], generator=made)


def moved(folder: Path) -> dict[str, Any]:
    """Into another folder, by another name."""
    return {"model": Path(shutil.move(folder, folder.parent / "elsewhere"))}


def saved_again(folder: Path, **options: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, **options)


def tokenizer_saved_again(folder: Path, **changes: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, **changes)
    tokenizer.save_pretrained(folder)


def other_vocabulary(folder: Path) -> None:
    train_tokenizer(["Ships lie in the harbor of Tarn."] * 3, vocabulary=320).save_pretrained(
        folder
    )


def noise(tensor: torch.Tensor) -> torch.Tensor:
    return tensor + torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))


def extra_token(found: dict[str, Any]) -> None:
    added = {**found["added_tokens"][0], "content": "Rex", "id": 319, "special": False}
    found["added_tokens"].append(added)


def other_first_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)


def rope(**values: Any) -> Change:
    return edited("config.json", lambda found: found["rope_parameters"].update(values))


def sidecar(change: Callable[[dict[str, Any]], Any]) -> Change:
    return edited("memlong.json", change)


WEIGHTS = "weights up to the memory layer"
REFUSED: dict[str, tuple[str, Change]] = {
    "weights of the same shape": (WEIGHTS, weights("layers.0.mlp.up_proj", noise)),
    "merged LoRA": (WEIGHTS, weights("layers.0.self_attn.q_proj", lora)),
    "merged LoRA in the memory layer": (WEIGHTS, weights("layers.1.self_attn.v_proj", lora)),
    "embeddings": (WEIGHTS, weights("embed_tokens", noise)),
    "q/k-norm": (WEIGHTS, weights("layers.1.self_attn.k_norm", lambda t: t * 1.5)),
    "vocabulary": ("tokenizer", other_vocabulary),
    "normalizer": ("tokenizer", edited("tokenizer.json", lambda f: f.update(
        normalizer={"type": "Lowercase"}))),
    "pre-tokenizer": ("tokenizer", edited("tokenizer.json", lambda f: f.update(
        pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                       "use_regex": True}))),
    "added tokens": ("tokenizer", edited("tokenizer.json", extra_token)),
    "first token": ("first token", other_first_token),
    "RoPE theta": ("RoPE", rope(rope_theta=5e5)),
    "RoPE scaling": ("RoPE", rope(rope_type="linear", factor=2.0)),
    "compute dtype": ("compute dtype", lambda folder: {"dtype": "bfloat16"}),
    "norm epsilon": ("layer settings", edited("config.json", lambda f: f.update(
        rms_norm_eps=1e-2))),
    "activation": ("layer settings", edited("config.json", lambda f: f.update(
        hidden_act="gelu"))),
    "memory layer": ("memory layers", sidecar(lambda f: f.update(readers={"0": [2, 3]}))),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_kv_depend_on_is_refused_by_name(name: str, copy: Path) -> None:
    part, change = REFUSED[name]
    options = {"model": copy / "model", **(change(copy / "model") or {})}
    with pytest.raises(IncompatibleMemoryError) as refused:
        MemLong(bank=copy / "bank", embedder="hash", **options)
    message = str(refused.value)
    assert f"{part}: " in message and "memlong rebuild" in message
    named = {each for each in (WEIGHTS, "tokenizer", "RoPE", "memory layers", "compute dtype")}
    # Other bytes are read under another dtype, and other layers below another memory layer.
    besides = {WEIGHTS} if name in ("compute dtype", "memory layer") else set()
    assert {each for each in named if f"{each}: " in message} <= {part} | besides


def test_a_bias_that_appears_is_refused(tmp_path: Path) -> None:
    plain = tiny_checkpoint(tmp_path / "plain", layout=LAYOUT)
    biased = tiny_checkpoint(tmp_path / "biased", layout=LAYOUT, attention_bias=True)
    MemLong(plain, tmp_path / "bank", embedder="hash").close()
    with pytest.raises(IncompatibleMemoryError, match=WEIGHTS):
        MemLong(biased, tmp_path / "bank", embedder="hash")


def test_another_text_format_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "TEXT_FORMAT", "Earlier conversation: v2")
    with pytest.raises(IncompatibleMemoryError, match=r"text format: .*v2 here, .*v1 in the bank"):
        MemLong(copy / "model", copy / "bank", embedder="hash")


class Adapted(torch.nn.Module):
    """A projection with an active, unmerged adapter, as PEFT makes it."""

    active_adapters, disable_adapters = ("default",), False

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.scaling = {"default": 2.0}
        self.lora_A = torch.nn.Linear(layer.in_features, 2, bias=False)
        self.lora_B = torch.nn.Linear(2, layer.out_features, bias=False)


def test_an_active_adapter_and_quantization_are_in_the_identity(copy: Path) -> None:
    model, tokenizer, _ = load_model(copy / "model", device="cpu")
    before = encoding_identity(model, tokenizer, "v1")
    attention = model.decoder.layers[3].self_attn
    attention.k_proj = Adapted(attention.k_proj)  # above the memory layer
    assert encoding_identity(model, tokenizer, "v1") == before
    attention = model.decoder.layers[1].self_attn
    attention.k_proj = Adapted(attention.k_proj)
    changed = encoding_identity(model, tokenizer, "v1").differences(before)
    assert [each.split(":")[0] for each in changed] == ["layer settings", WEIGHTS]
    adapted = encoding_identity(model, tokenizer, "v1")
    attention.k_proj.scaling["default"] = 4.0  # the same weights, twice as strong
    stronger = encoding_identity(model, tokenizer, "v1").differences(adapted)
    assert [each.split(":")[0] for each in stronger] == ["layer settings"]
    model.lm.config.quantization_config = {"quant_method": "example", "bits": 4}
    changed = encoding_identity(model, tokenizer, "v1").differences(before)
    assert [each.split(":")[0] for each in changed] == ["layer settings", "quantization", WEIGHTS]


ACCEPTED: dict[str, Change] = {
    "nothing": lambda folder: None,
    "device by name": lambda folder: {"device": "cpu"},
    "device by number": lambda folder: {"device": "cpu:0"},
    "dtype as it is": lambda folder: {"dtype": torch.float32},
    "dtype by name": lambda folder: {"dtype": "float32"},
    "files saved again": saved_again,
    "in shards": lambda folder: saved_again(folder, max_shard_size="60KB"),
    "tokenizer saved again": tokenizer_saved_again,
    "padding side": lambda folder: tokenizer_saved_again(folder, padding_side="left"),
    "truncation and padding left in the tokenizer": edited("tokenizer.json", lambda f: f.update(
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
                 "pad_id": 0, "pad_type_id": 0, "pad_token": "x"})),
    "vocabulary in another order": edited("tokenizer.json", lambda f: f["model"].update(
        vocab=dict(reversed(f["model"]["vocab"].items())))),
    "upper layers": weights("layers.3.", noise),
    "above the memory layer's projections": weights("layers.1.mlp.", noise),
    "the memory layer's queries": weights("layers.1.self_attn.q_proj", noise),
    "the last norm": weights("model.norm", noise),
    "head": weights("lm_head", noise),
    "gates": sidecar(lambda f: f.update(gates={k: [0.5] * 4 for k in f["gates"]})),
    "retrieval layers": sidecar(lambda f: f.update(readers={"1": [3]}, gates={"3": [0.0] * 4})),
    "position policy": sidecar(lambda f: f.update(position="far")),
    "chat template": lambda folder: (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}") and None,
    "generation config": edited("generation_config.json", lambda f: f.update(
        temperature=0.3, do_sample=True)),
    "library version": edited("config.json", lambda f: f.update(transformers_version="5.99.0")),
    "attention implementation": edited("config.json", lambda f: f.update(
        _attn_implementation="eager")),
    "theta as a whole number": edited("config.json", lambda f: f["rope_parameters"].update(
        rope_theta=int(f["rope_parameters"]["rope_theta"]))),
    "longer context": edited("config.json", lambda f: f.update(max_position_embeddings=4096)),
    "another folder": moved,
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_kv_do_not_depend_on_is_accepted(name: str, copy: Path) -> None:
    options = {"model": copy / "model", **(ACCEPTED[name](copy / "model") or {})}
    with MemLong(bank=copy / "bank", embedder="hash", **options) as ml:
        assert ml.memories(user_id="alice").search("dog")[0].text == "My dog is called Rex."


def test_the_number_of_threads_does_not_matter(copy: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with MemLong(copy / "model", copy / "bank", embedder="hash") as ml:
            assert ml.memories(user_id="alice").search("dog")[0].text == "My dog is called Rex."
    finally:
        torch.set_num_threads(before)


def test_a_part_that_an_older_release_did_not_record_is_recorded(copy: Path) -> None:
    with MemLong(copy / "model", copy / "bank", embedder="hash") as ml:
        storage = ml.engine.bank._storage
        identity = storage.encoding_identity()
        assert identity is not None
        old = {name: value for name, value in identity.parts.items() if name != "first token"}
        with storage._db.scope(write=True) as conn:
            conn.exec_driver_sql(
                "UPDATE meta SET value = ? WHERE key = 'encoding'", (json.dumps(old),)
            )
    with MemLong(copy / "model", copy / "bank", embedder="hash") as ml:
        assert ml.engine.bank._storage.encoding_identity() == identity
    other_first_token(copy / "model")
    with pytest.raises(IncompatibleMemoryError, match="first token"):
        MemLong(copy / "model", copy / "bank", embedder="hash")
