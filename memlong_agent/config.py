"""Settings: frozen, checked when made, unknown names refused.

Every number says its unit in its name. Nothing here knows torch, SQL or a model.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memlong_agent.errors import ConfigError

PositionPolicy = Literal["zero", "contiguous", "far"]
Eviction = Literal["counter", "fifo", "lru"]
Scope = Literal["owner", "session"]
MIN_CHUNK_TOKENS = 32


class Frozen(BaseModel):
    """Base of settings and public records: immutable, unknown fields refused.

    Construction reports a user's mistake as one :class:`ConfigError` sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as exc:
            raise ConfigError(_one_sentence(type(self), exc)) from None

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked again (``None`` values change nothing)."""
        changed = {name: value for name, value in changes.items() if value is not None}
        return type(self)(**{**dict(self), **changed}) if changed else self


class Settings(Frozen):
    """Settings of one :class:`memlong_agent.MemLong`; `None` means "decided by the model"."""

    chunk_tokens: int = Field(128, ge=MIN_CHUNK_TOKENS, le=4096)
    """Most tokens of one chunk, its header included."""
    top_k: int = Field(8, ge=1, le=1024)
    """Chunks recalled per turn."""
    window_tokens: int | None = Field(None, ge=64)
    """Tokens of the live window; default min(4096, half the model's limit)."""
    resume_tokens: int = Field(512, ge=0)
    """Tokens of a session's last turns that a new process reads again."""
    recall_every: int = Field(0, ge=0)
    """Recall again after this many generated tokens; 0 is once per turn."""
    position: PositionPolicy | None = None
    """Where recalled keys stand; default `zero` for memlong layouts, `contiguous` for per-layer."""
    scope: Scope = "owner"
    """`owner` recalls over all sessions of the owner, `session` only from the running one."""
    capacity_tokens: int | None = Field(None, ge=256)
    """Most tokens kept per owner; above it chunks are evicted."""
    eviction: Eviction = "counter"
    """Which chunks go first (memlong paper section 3: `counter`)."""
    max_memories: int | None = Field(None, ge=1)
    """Most memories of one owner; above it nothing is written, and the error says so."""
    max_text_bytes: int | None = Field(1 << 20, ge=1024)
    """Most bytes (UTF-8) of what is written as one memory: a message, an update, an item."""
    max_document_bytes: int | None = Field(256 << 20, ge=1024)
    """Most bytes (UTF-8) of one document, which is cut into memories while it is read."""


class Sampling(Frozen):
    """How the next token is chosen. `temperature=0` is greedy."""

    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0.0, le=100.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    sample_top_k: int = Field(0, ge=0)
    """Keep only this many most likely tokens; 0 keeps all. (`top_k` counts recalled chunks.)"""
    seed: int | None = None
    stop: tuple[str, ...] = ()


def _one_sentence(model: type[BaseModel], exc: ValidationError) -> str:
    first = exc.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or model.__name__
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(model.model_fields))
        return f"Unknown setting {name!r}. Use one of: {known}."
    return f"{name}={first.get('input')!r}: {first['msg'].lower()}. Correct {name} and try again."
