"""One training step: encode chunks, read them, weigh the loss, move the weights.

The phase decides what may move: `base` moves everything and lets the gradient flow through the
bank's encoder; `memory` freezes embeddings and layers 0..m, as the paper does, so that K/V already
in a bank stay valid, and moves the layers above and the gates.

Letters: B windows, T window tokens, N chunks, C chunk tokens, M recalled tokens, H_kv key/value
heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F

from memlong_agent.attention import RecalledMemory
from memlong_agent.model import MemoryModel
from memlong_agent.training.batches import Batch
from memlong_agent.training.settings import Phase

_WINDOW_START = 1  # recalled keys stand at 0


def read_memory(model: MemoryModel, batch: Batch) -> RecalledMemory | None:
    """The batch's chunks encoded and dealt to its rows; None when no row has memory."""
    if not bool(batch.bias.isfinite().any()):
        return None
    pairs = [model.project(ids) for ids in batch.chunk_ids]
    layers = model.layout.memory_layers
    keys, values = (
        torch.stack([_deal([pair[layer][part] for pair in pairs], batch) for layer in layers])
        for part in (0, 1)
    )
    bias = batch.bias[:, None, None].to(keys.dtype)
    positions = torch.zeros(1, batch.memory.shape[1], dtype=torch.long)
    return RecalledMemory(model.place(keys, values, positions, bias), model.gates)


def _deal(states: list[torch.Tensor], batch: Batch) -> torch.Tensor:
    """Each `(N, H_kv, P + C, D)`, without preamble and joined, to `(B, H_kv, M, D)`."""
    bare = [group[:, :, batch.preamble :].transpose(1, 2).flatten(0, 1) for group in states]
    return torch.cat(bare)[batch.memory].transpose(1, 2)  # (B, M, H_kv, D) before


def loss_of(model: MemoryModel, batch: Batch, *, phase: Phase) -> torch.Tensor:
    """Weighted next-token cross-entropy of the windows, a scalar."""
    with torch.set_grad_enabled(phase == "base"):
        memory = read_memory(model, batch)
    logits = model.forward(batch.window_ids, _WINDOW_START, memory=memory)[:, :-1]
    weights = batch.weights[:, 1:]
    counted = weights > 0  # not the rest: the head is the widest matrix of a small model
    losses = F.cross_entropy(
        logits[counted].float(), batch.window_ids[:, 1:][counted], reduction="none"
    )
    return (losses * weights[counted]).sum() / weights.sum()


@torch.no_grad()
def answer_hits(model: MemoryModel, batch: Batch, *, memory: bool = True) -> list[bool]:
    """For each row with an answer: are all tokens of its answering replies the most likely ones?

    Teacher-forced, which for greedy decoding is the same as generating these very replies.
    """
    recalled = read_memory(model, batch) if memory else None
    logits = model.forward(batch.window_ids, _WINDOW_START, memory=recalled)[:, :-1]
    right = logits.argmax(-1) == batch.window_ids[:, 1:]
    asked = batch.answers[:, 1:]
    return [bool(right[b][asked[b]].all()) for b in range(len(asked)) if bool(asked[b].any())]


def freeze(model: MemoryModel, phase: Phase) -> list[torch.nn.Parameter]:
    """Mark what `phase` may move and return it, gates excluded."""
    highest = model.layout.memory_layers[-1]
    decoder = model.decoder
    frozen = [decoder.embed_tokens, *decoder.layers[: highest + 1]] if phase == "memory" else []
    model.lm.requires_grad_(True)
    for module in frozen:
        module.requires_grad_(False)
    return [parameter for parameter in model.lm.parameters() if parameter.requires_grad]


class MasterAdamW:
    """AdamW on float32 copies of bf16 parameters.

    A bf16 weight has 8 bits of mantissa: an update below 1/256 of it would be lost every step.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.masters = [parameter.detach().float().clone() for parameter in self.parameters]
        groups = [
            {"params": [m for m in self.masters if m.dim() > 1], "weight_decay": weight_decay},
            {"params": [m for m in self.masters if m.dim() <= 1], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), foreach=True)

    def step(self, learning_rate: float, clip: float = 1.0) -> float:
        """Clip, move, copy back; returns the gradient norm before clipping."""
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.masters, clip)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
        self.adam.step()
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                parameter.copy_(master)
        return float(norm)

    def state(self) -> dict[str, Any]:
        """All that :meth:`restore` needs to go on as if nothing had happened."""
        return {"adam": self.adam.state_dict(), "masters": self.masters}

    def restore(self, state: dict[str, Any]) -> None:
        """Back to what :meth:`state` gave."""
        for master, saved in zip(self.masters, state["masters"], strict=True):
            master.data.copy_(saved)
        self.adam.load_state_dict(state["adam"])
