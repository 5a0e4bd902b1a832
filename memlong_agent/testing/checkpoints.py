"""Small real checkpoints, and words put into a model's mouth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from memlong_agent.config import PositionPolicy, Sampling
from memlong_agent.engine import Constraint, Engine, Sampler
from memlong_agent.layout import MemoryLayout
from memlong_agent.memlong import MemLong
from memlong_agent.model.load import write_sidecar
from memlong_agent.training.tokenizer import train_tokenizer

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
_FAMILIES: dict[Family, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
_BONUS = 1e6
_TEXTS = (
    "My dog is called Rex. What is my dog called?",
    "User: hello\nAssistant: Noted.",
    "Earlier conversation:",
)


def tiny_checkpoint(
    folder: Path,
    family: Family = "llama",
    *,
    layout: MemoryLayout | None = None,
    policy: PositionPolicy = "zero",
    layers: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """Save a random 4-layer model of 64 dimensions with a 320-token tokenizer; returns `folder`.

    With `layout` a `memlong.json` is written, with gates at 0; without, it is a stock checkpoint.
    `config` overrides fields of the family's transformers config.
    """
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(_TEXTS * 3, vocabulary=320)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **config,
    }
    make_config, make_model = _FAMILIES[family]
    model = make_model(make_config(**shape)).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if layout is not None:
        gates = {
            layer: torch.zeros(shape["num_attention_heads"]) for layer in layout.retrieval_layers
        }
        write_sidecar(folder, layout, gates, policy)
    return folder


@contextmanager
def preferring(memlong: MemLong, script: str | Sequence[str]) -> Iterator[None]:
    """Inside, every reply of `memlong` wants to say the script; of several, each reply the next.

    The next token of the script gets a large bonus in the real sampler, under the real constraint
    and at any temperature; at its end a stop token does. After the last of several scripts, and
    once a constraint has forced other words, the model is on its own. Not for concurrent replies.
    """
    engine, before = memlong.engine, memlong.engine.sampler
    scripts = None if isinstance(script, str) else iter(script)

    def sampler(sampling: Sampling, constraint: Constraint | None) -> Sampler:
        wanted = script if isinstance(script, str) else next(scripts or iter(()), None)
        if wanted is None:
            return before(sampling, constraint)
        return _Preferring(engine, wanted, sampling, constraint)

    engine.sampler = sampler
    try:
        yield
    finally:
        engine.sampler = before


class _Preferring(Sampler):
    """The real sampler over logits with a bonus."""

    def __init__(
        self, engine: Engine, script: str, sampling: Sampling, constraint: Constraint | None
    ) -> None:
        super().__init__(sampling, constraint)
        self._engine, self._script = engine, script
        self._said: list[int] = []
        self._plan = self._ids(script)

    def next_id(self, logits: torch.Tensor, left: int = 1) -> int:
        wanted = logits.clone()
        for place, token in enumerate(self._next()):
            wanted[token] += _BONUS / (1 + place)
        token = super().next_id(wanted, left)
        self._said.append(token)
        self._plan = self._plan[1:] if self._plan[:1] == [token] else self._replanned()
        return token

    def _next(self) -> list[int]:
        """Ids that go on with the script: the tokenizer's own choice, then shorter ones."""
        if not self._plan:
            return sorted(self._engine.stop_ids) if self._rest() == "" else []
        rest = self._rest() or ""
        shorter = [self._ids(rest[:size]) for size in range(min(16, len(rest)), 0, -1)]
        return [self._plan[0], *(ids[0] for ids in shorter if len(ids) == 1)]

    def _rest(self) -> str | None:
        """What is still to be said; None in the middle of a character, or after other words."""
        said = self._engine.tokenizer.decode(self._said)
        return self._script[len(said) :] if self._script.startswith(said) else None

    def _replanned(self) -> list[int]:
        return self._ids(self._rest() or "")

    def _ids(self, text: str) -> list[int]:
        return list(self._engine.tokenizer(text, add_special_tokens=False)["input_ids"])
