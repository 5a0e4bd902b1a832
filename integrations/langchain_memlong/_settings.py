"""What every class of this package is made of, and one call as a stream of memlong-agent.

In: constructor fields, and the keyword arguments of a call, which win over fields. Out: a stream
that has not begun. Loads no torch until a stream runs; unknown names are refused with the nearest
known one.
"""

from __future__ import annotations

import difflib
import json
import os
import time
from collections.abc import Generator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.caches import BaseCache
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from langchain_memlong._schemas import tool_arguments
from memlong_agent.config import Sampling
from memlong_agent.errors import ConfigError, MemLongError
from memlong_agent.memlong import Stream, shared
from memlong_agent.records import Reply

if TYPE_CHECKING:
    from memlong_agent import MemLong

# LangChain's bases ignore what they do not know, and the last base's settings win: every class that
# is made of these fields repeats this one.
CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
BUNDLED = "memlong-tiny"
Write = Literal["turn", "off"]
_SAMPLING = ("max_tokens", "temperature", "top_p", "sample_top_k", "seed")
_HOW = ("model", "session_id", "user_id", "memory", "write", "timeout")
_CALL = (*_HOW, *_SAMPLING, "stop", "message_id", "tools", "tool_choice", "response_format")
# LangChain's own: switches of its methods, and notes for traces.
_NOT_OURS = ("stream", "strict", "ls_structured_output_format", "structured_output_format")


class MemLongPlace(BaseModel):
    """Which model and which bank; one engine serves all that name the same, in one process."""

    model_config = CONFIG

    model: str = Field(
        default_factory=lambda: os.environ.get("MEMLONG_MODEL", BUNDLED),
        validation_alias=AliasChoices("model", "model_name"),
    )
    """Hub name or folder; default `MEMLONG_MODEL`, else the bundled memlong-tiny."""
    bank: str | Path | None = Field(default_factory=lambda: os.environ.get("MEMLONG_BANK"))
    """Folder of the bank, or ":memory:"; default `MEMLONG_BANK`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `memlong_agent.MemLong`: embedder, device, dtype, tenant, top_k, ..."""
    session_id: str | None = None
    user_id: str | None = None

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as exc:
            raise ConfigError(_one_sentence(type(self), exc)) from None

    def memlong(self, model: str | None = None) -> MemLong:
        """The shared engine, loaded by the first who asks. Raises what `MemLong(...)` raises."""
        name = self.model if model is None else model
        return shared(None if name == BUNDLED else name, self.bank, **self.options)


class MemLongSettings(MemLongPlace):
    """How to reply: whose memory, and how tokens are chosen."""

    memory: bool = True
    """Recall into the attention; without a session and a user nothing is recalled anyway."""
    write: Write = "turn"
    """`turn` remembers the last exchange of a call that has a session or a user."""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    sample_top_k: int | None = None
    seed: int | None = None
    stop: list[str] | None = Field(
        default=None, validation_alias=AliasChoices("stop", "stop_sequences")
    )
    timeout: float | None = None
    """Seconds that one reply may take, loading not counted; then MemLongError."""
    max_retries: int = 0
    """Accepted because LangChain's models have it: nothing here fails by chance."""
    cache: BaseCache | bool | None = Field(default=False, exclude=True)
    """Off: a cached reply would not change when the memory does."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        Sampling(**self._sampling({}))  # says what is wrong before anything loads

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """LangChain revives only what its own list of packages names."""
        return False

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("model", "bank", "session_id", "user_id", "memory", "write", "options")
        return {**{name: getattr(self, name) for name in names}, **self._sampling({})}

    def _reply(
        self, messages: Sequence[Mapping[str, Any]], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> Stream:
        """One call as a stream. ConfigError for an argument that no call has."""
        _refuse_unknown(kwargs)
        asked = self._asked(_HOW, kwargs)
        if asked["write"] not in ("turn", "off"):
            raise ConfigError(f"write={asked['write']!r}: pass 'turn' or 'off'.")
        stops = self.stop if stop is None else stop
        call = {
            **self._sampling(kwargs),
            **tool_arguments(kwargs),
            "session_id": asked["session_id"],
            "user_id": asked["user_id"],
            "memory": asked["memory"],
            "message_id": kwargs.get("message_id"),
            "stop": tuple(text for text in stops or () if text),
        }
        call["write"] = asked["write"] == "turn" and "schema" not in call
        lane = (asked["model"], str(self.bank), asked["user_id"], asked["session_id"])
        return Stream(
            self._steps(messages, asked["model"], asked["timeout"], call),
            lane=lane if asked["session_id"] and call["write"] else None,
        )

    def _steps(
        self,
        messages: Sequence[Mapping[str, Any]],
        model: str,
        timeout: float | None,
        call: dict[str, Any],
    ) -> Generator[str, None, Reply]:
        """Load the engine, if it is not, and reply; yields once a token."""
        stream = self.memlong(model).respond(messages, **call)
        end = None if timeout is None else time.monotonic() + timeout
        try:
            while True:
                try:
                    yield stream.step()
                except StopIteration:
                    return stream.reply
                if end is not None and time.monotonic() > end:
                    raise MemLongError(
                        f"The reply took longer than timeout={timeout:g} s. Raise timeout, or "
                        "lower max_tokens."
                    )
        finally:
            stream.close()

    def _sampling(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What a call and the fields say of sampling; what neither says is left out."""
        asked = self._asked(_SAMPLING, kwargs)
        return {name: value for name, value in asked.items() if value is not None}

    def _asked(self, names: Sequence[str], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The call's own arguments, else the fields; None in a call is as if it were not there."""
        own = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        return {name: getattr(self, name) for name in names} | own


def window_tokens(model: str, options: Mapping[str, Any]) -> int | None:
    """Most prompt tokens, where that is known without loading the model."""
    chosen = options.get("window_tokens")
    return chosen if isinstance(chosen, int) else _limit(model)


@lru_cache(maxsize=64)
def _limit(model: str) -> int | None:
    import memlong_agent

    bundled = Path(memlong_agent.__file__).parent / "assets" / BUNDLED
    config = (bundled if model == BUNDLED else Path(model)) / "config.json"
    if not config.is_file():
        return None
    limit = json.loads(config.read_text()).get("max_position_embeddings")
    return min(4096, limit // 2) if isinstance(limit, int) else None


def _refuse_unknown(kwargs: Mapping[str, Any]) -> None:
    for name in kwargs:
        if name not in _CALL and name not in _NOT_OURS:
            raise ConfigError(_unknown(name, _CALL))


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    if near:
        return f"Unknown argument {name!r}. Did you mean {near[0]!r}?"
    return f"Unknown argument {name!r}. Use one of: {', '.join(sorted(known))}."


def _one_sentence(model: type[BaseModel], exc: ValidationError) -> str:
    first = exc.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or model.__name__
    if first["type"] == "extra_forbidden":
        return _unknown(name, sorted(model.model_fields))
    return f"{name}={first.get('input')!r}: {first['msg'].lower()}. Correct {name} and try again."
