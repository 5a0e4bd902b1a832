"""What a value of an archive may be: one function a kind, and records made of them.

In: what JSON gave. Out: the value, or ArchiveError that names the field. Fields that are missing
and fields that nobody knows are refused alike; nothing is repaired.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from memlong_agent.errors import ArchiveError

Check = Callable[[Any], Any]
Fields = Mapping[str, Check]
MAX_COUNT = (1 << 31) - 1
_MAX_PK = (1 << 62) - 1
_MAX_DEPTH = 100
_MAX_CHUNK_TOKENS = 4096  # of Settings.chunk_tokens
_ID = re.compile(r"[0-9a-f]{32}")
_ROLES = ("exchange", "user", "assistant", "document")
_KINDS = ("user", "session")


class Wrong(Exception):
    """Why a value is refused; becomes an ArchiveError that names the field."""


def refused(where: str, why: str) -> ArchiveError:
    return ArchiveError(
        f"This archive cannot be restored: {where} {why}. Nothing was restored. Export again, or "
        "take another copy of the file."
    )


def loads(text: bytes | str, where: str) -> Any:
    """JSON as the standard has it. ArchiveError for anything else, however deep or long."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as exc:
        why = "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)[:200]
        raise refused(where, f"is not JSON ({why})") from None


def record(value: Any, fields: Fields, where: str) -> dict[str, Any]:
    """A JSON object with exactly these fields, each checked."""
    if not isinstance(value, dict):
        raise refused(where, "is not a JSON object")
    if unknown := sorted(set(value) - set(fields)):
        raise refused(where, f"has the unknown field {unknown[0][:50]!r}")
    if missing := sorted(set(fields) - set(value)):
        raise refused(where, f"has no field {missing[0]!r}")
    checked = {}
    for name, check in fields.items():
        try:
            checked[name] = check(value[name])
        except Wrong as exc:
            raise refused(where, f"has a wrong {name}: {exc}") from None
    return checked


def optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def text(value: Any) -> str:
    """Text that every bank can keep."""
    if not isinstance(value, str):
        raise Wrong("it is not text")
    if "\0" in value:
        raise Wrong("it holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Wrong("it holds half of a surrogate pair") from None
    return value


def filled(value: Any) -> str:
    if not text(value).strip():
        raise Wrong("it is blank")
    return str(value)


def name(value: Any) -> str:
    """The name of an owner or a session."""
    if not text(value):
        raise Wrong("it is empty")
    return str(value)


def number(least: int, most: int = MAX_COUNT) -> Check:
    """A whole number; true and false are none."""

    def check(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise Wrong(f"it is not a whole number from {least} to {most}")
        return value

    return check


def real(value: Any) -> float:
    if type(value) not in (int, float) or abs(value) > 1e300 or not math.isfinite(value):
        raise Wrong("it is not a finite number")
    return float(value)


def flag(value: Any) -> bool:
    if type(value) is not bool:
        raise Wrong("it is neither true nor false")
    return value


def hexadecimal(value: Any) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise Wrong("it is not 32 hexadecimal digits")
    return value


def time(value: Any) -> datetime:
    """A date with time and zone."""
    try:
        at = datetime.fromisoformat(value[:40])
        return at.astimezone(UTC) if at.tzinfo is not None else _zoneless()
    except (ValueError, TypeError, OverflowError):
        raise Wrong("it is not a date with time and zone from year 1 to 9999") from None


def one_of(*allowed: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise Wrong(f"it is none of {', '.join(allowed)}")
        return value

    return check


def owner(value: Any) -> tuple[str, str]:
    """Kind and name."""
    if not isinstance(value, list) or len(value) != 2:
        raise Wrong("it is not a kind and a name")
    return one_of(*_KINDS)(value[0]), name(value[1])


def plain_json(value: Any) -> dict[str, Any]:
    """A JSON object that is not nested beyond reason."""
    if not isinstance(value, dict):
        raise Wrong("it is not a JSON object")
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for some in inner for each in some if isinstance(each, dict | list)]
        if not level:
            return value
    raise Wrong(f"it is nested more than {_MAX_DEPTH} deep")


def messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise Wrong("it is not a list of messages")
    for each in value:
        plain_json(each)
        text(each.get("role"))
        text(each.get("content"))
    return value


def namespace(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Wrong("it is not a list of labels")
    return tuple(map(name, value))


def strings(value: Any) -> dict[str, str]:
    """Named strings, as identities are."""
    if not isinstance(value, dict):
        raise Wrong("it is not a JSON object of texts")
    return {text(key): text(each) for key, each in value.items()}


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")


def _zoneless() -> datetime:
    raise ValueError


CHUNK: Fields = {
    "ordinal": number(0),
    "header": text,
    "text": text,
    "tokens": number(1, _MAX_CHUNK_TOKENS),
    "vector": flag,
    "counter": number(0),
    "last_recalled_at": optional(time),
}
MEMORY: Fields = {
    "id": hexadecimal,
    "rank": number(0, _MAX_PK),
    "owner": owner,
    "role": one_of(*_ROLES),
    "text": filled,
    "session": optional(name),
    "messages": optional(messages),
    "source": optional(text),
    "ordinal": optional(number(0)),
    "metadata": plain_json,
    "message_id": optional(text),
    "created_at": time,
    "expires_at": optional(time),
    "recallable": flag,
    "turn": optional(text),
    "chunks": lambda value: value,  # CHUNK, by lines.py
}
ITEM: Fields = {
    "owner": optional(owner),
    "memory_id": optional(hexadecimal),
    "namespace": namespace,
    "key": text,
    "value": plain_json,
    "created_at": time,
    "updated_at": time,
    "expires_at": optional(time),
    "ttl_s": optional(real),
    "vectors": number(0, 1 << 16),
}
RECALL: Fields = {
    "memory_id": hexadecimal,
    "chunk": optional(number(0)),
    "turn": text,
    "rank": number(0),
    "score": real,
    "attention_mass": optional(real),
    "at": time,
}
SUPERSEDED: Fields = {"memory_id": hexadecimal, "superseded_by": hexadecimal}
