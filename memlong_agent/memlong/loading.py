"""The model of a bank: loaded, with the identity of what it encodes.

In: what a user calls a model. Out: model, tokenizer, position policy, encoding identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from memlong_agent.chunking import CHUNKING_VERSION, PREAMBLE
from memlong_agent.config import PositionPolicy
from memlong_agent.identity import Identity
from memlong_agent.model import MemoryModel, load_model
from memlong_agent.model.identity import encoding_identity

BUNDLED = Path(__file__).parents[1] / "assets" / "memlong-tiny"
Secret = str | bytes | Path | None
"""A user's key: hexadecimal digits or a passphrase, 32 bytes, or the file that holds it."""
TEXT_FORMAT = f"{PREAMBLE.strip()} v{CHUNKING_VERSION}"


def encoding_model(
    model: str | Path | None,
    device: str | None,
    dtype: torch.dtype | str | None,
    model_kwargs: Mapping[str, Any] | None,
) -> tuple[MemoryModel, Any, PositionPolicy, Identity]:
    """A checkpoint, or the bundled memlong-tiny. Raises UnsupportedModelError, ConfigError."""
    name = BUNDLED if model is None else model
    loaded, tokenizer, policy = load_model(name, device=device, dtype=dtype, **(model_kwargs or {}))
    return loaded, tokenizer, policy, encoding_identity(loaded, tokenizer, TEXT_FORMAT)
