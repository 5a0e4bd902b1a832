"""How many tokens an engine may fill, without loading the model.

In: the model's name or folder, and the options of `MemLong`. Out: a count. Engines ask when they
are built and agents on every step, on the event loop: reading config.json is all it may cost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW

BUNDLED = "memlong-tiny"
_MOST = 4096  # as memlong_agent: the live window is min(4096, half the model's limit)


def window_tokens(model: str, options: Mapping[str, Any]) -> int:
    """Tokens of the live window that `MemLong` will have.

    Of a Hub model that is not in the local cache nothing is known yet: LlamaIndex's own default.
    """
    chosen = options.get("window_tokens")
    if chosen is not None:
        return int(chosen)
    revision = (options.get("model_kwargs") or {}).get("revision")
    limit = _limit(model, revision)
    return DEFAULT_CONTEXT_WINDOW if limit is None else min(_MOST, limit // 2)


def _limit(model: str, revision: str | None) -> int | None:
    """Positions the model has; None while its configuration is not on this machine."""
    text = _configuration(model, revision)
    if text is None:
        return None
    config = json.loads(text)
    limit = config.get("max_position_embeddings") or config.get("text_config", {}).get(
        "max_position_embeddings"
    )
    return None if limit is None else int(limit)


def _configuration(model: str, revision: str | None) -> str | None:
    if model == BUNDLED:
        bundled = resources.files("memlong_agent") / "assets" / BUNDLED / "config.json"
        return bundled.read_text("utf-8")
    local = Path(model) / "config.json"
    if local.is_file():
        return local.read_text("utf-8")
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
    except ValueError:  # not a Hub name either: loading the model says what is wrong with it
        return None
    return Path(cached).read_text("utf-8") if isinstance(cached, str) else None
