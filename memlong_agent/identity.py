"""What K/V or vectors depend on, as named digests: two identities are equal or differ by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import xxhash


@dataclass(frozen=True, slots=True)
class Identity:
    """Named parts, each a short string (a digest or a value a person can read)."""

    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """xxh3-128 over all names and parts, 32 hexadecimal digits."""
        return xxhash.xxh3_128_hexdigest(self.to_json().encode())

    def differences(self, other: Identity) -> list[str]:
        """One phrase a differing part: `name: mine is ..., theirs is ...`, sorted by name."""
        names = sorted(set(self.parts) | set(other.parts))
        missing = "absent"
        return [
            f"{name}: {self.parts.get(name, missing)} here, "
            f"{other.parts.get(name, missing)} in the bank"
            for name in names
            if not _same(self.parts.get(name), other.parts.get(name))
        ]

    def completing(self, recorded: Identity) -> Identity:
        """What `recorded` says, and of the parts that it does not know yet what this one says."""
        return Identity({**self.parts, **recorded.parts})

    def to_json(self) -> str:
        return json.dumps(dict(self.parts), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(json.loads(text))


def _same(mine: str | None, theirs: str | None) -> bool:
    """Equal as text, or as JSON objects: 10000 and 10000.0 are one number."""
    if mine == theirs:
        return True
    if mine is None or theirs is None or not (mine[:1] == theirs[:1] == "{"):
        return False
    return bool(json.loads(mine) == json.loads(theirs))
