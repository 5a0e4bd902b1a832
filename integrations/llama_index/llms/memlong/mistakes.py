"""A user's mistake in arguments as one sentence, whichever object was being made.

In: keyword arguments. Out: nothing, or a ConfigError that names the argument and what to do.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, ValidationError

from memlong_agent import ConfigError


class Careful(BaseModel):
    """Refuses arguments it does not know, and says so in one sentence."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as exc:
            raise ConfigError(_sentence(type(self), exc)) from None


def _sentence(kind: type[BaseModel], exc: ValidationError) -> str:
    first = exc.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or kind.__name__
    if first["type"] == "extra_forbidden":
        near = get_close_matches(name, kind.model_fields, 1)
        known = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(kind.model_fields)}."
        return f"{kind.__name__} has no argument {name!r}. {known}"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])  # a sentence of ours
    return f"{name}={first.get('input')!r}: {first['msg'].lower()}. Correct {name} and try again."
