"""Which layers' K/V are stored and which layers read them. Layers are 0-indexed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from memlong_agent.errors import ConfigError

LayoutName = Literal["memlong", "per-layer"]
READERS = 4  # retrieval layers of the memlong layout (paper: 4 of 26)


@dataclass(frozen=True, slots=True)
class MemoryLayout:
    """A map from each memory layer to the retrieval layers that read it."""

    name: LayoutName
    readers: Mapping[int, tuple[int, ...]]

    @property
    def memory_layers(self) -> tuple[int, ...]:
        """Layers whose K/V are stored, ascending."""
        return tuple(sorted(self.readers))

    @property
    def retrieval_layers(self) -> tuple[int, ...]:
        """Layers that attend to recalled K/V, ascending."""
        return tuple(sorted(layer for layers in self.readers.values() for layer in layers))

    @classmethod
    def memlong(cls, layers: int, memory_layer: int | None = None) -> Self:
        """One memory layer (default `layers // 2 - 1`), read by up to 4 evenly spaced layers."""
        m = layers // 2 - 1 if memory_layer is None else memory_layer
        above = layers - 1 - m
        if m < 0 or above < 1:
            raise ConfigError(
                f"memory layer {m} of {layers} leaves no layer above it to read the memory. "
                f"Choose one between 0 and {layers - 2}."
            )
        count = min(READERS, above)
        return cls("memlong", {m: tuple(m + (i + 1) * above // count for i in range(count))})

    @classmethod
    def per_layer(cls, layers: int, full_attention: Sequence[int] | None = None) -> Self:
        """Every full-attention layer from `layers // 2` up stores and reads its own K/V."""
        eligible = range(layers) if full_attention is None else full_attention
        chosen = [layer for layer in eligible if layer >= layers // 2]
        return cls("per-layer", {layer: (layer,) for layer in chosen})
