"""The first thing that is read of an archive: what it is, of which bank, and how much it holds.

In: identities and counts. Out: JSON; from JSON, the checked manifest. The names of all other
entries follow from the numbers of parts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from memlong_agent.errors import ArchiveError, IncompatibleMemoryError
from memlong_agent.identity import Identity
from memlong_agent.kv import KVSpec
from memlong_agent.storage.archive import fields
from memlong_agent.storage.archive.zipped import MAX_ENTRIES
from memlong_agent.storage.kvfile import DTYPE_NAMES

NAME = "manifest.json"
FORMAT, VERSION = "memlong-archive", 1
MAX_BYTES = 16 << 20
BINARY = ("memories", "items")  # parts of these have tensors too
_PARTS = ("memories", "items", "recalls", "superseded")
_COUNTS = ("memories", "chunks", "tokens", "items", "recalls", "superseded")
_MANY = (1 << 53) - 1
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPE_NAMES}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive says of itself."""

    tenant: str
    created_at: str
    encoding: dict[str, str]
    retrieval: dict[str, str]
    kv: dict[str, Any]
    dimensions: int
    """Of vectors; 0 without."""
    counts: dict[str, int]
    parts: dict[str, int]
    """How many files there are of each sort."""
    checksums: list[str]
    """xxh3-128 of each file, in order."""

    @property
    def spec(self) -> KVSpec:
        kv = self.kv
        return KVSpec(tuple(kv["layers"]), kv["kv_heads"], kv["head_dim"], _DTYPES[kv["dtype"]])

    def names(self) -> list[str]:
        """Names of all entries but this one, in order."""
        return [
            name_of(sort, number, ending)
            for sort in _PARTS
            for number in range(self.parts[sort])
            for ending in (("jsonl", "safetensors") if sort in BINARY else ("jsonl",))
        ]

    def to_json(self) -> bytes:
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(values, indent=1).encode() + b"\n"


def name_of(sort: str, number: int, ending: str) -> str:
    return f"{sort}/{number:06}.{ending}"


def spec_values(spec: KVSpec) -> dict[str, Any]:
    """As the manifest holds it."""
    dtype = str(spec.dtype).removeprefix("torch.")
    layers = list(spec.layers)
    return dict(layers=layers, kv_heads=spec.kv_heads, head_dim=spec.head_dim, dtype=dtype)


def read_manifest(data: bytes) -> Manifest:
    """The checked manifest. ArchiveError for another format or a later version."""
    where = "its manifest"
    values = fields.loads(data, where)
    known = values if isinstance(values, dict) else {}
    if known.get("format") != FORMAT:
        raise fields.refused(where, "is not that of an archive of memories")
    if type(known.get("version")) is not int or known["version"] != VERSION:
        raise ArchiveError(
            f"This archive is of version {known.get('version')!r:.20}, this memlong-agent reads "
            f"version {VERSION}. Upgrade the package: pip install --upgrade memlong-agent."
        )
    checked = fields.record(values, _FIELDS, where)
    del checked["format"], checked["version"]
    checked["created_at"] = checked["created_at"].isoformat()
    return Manifest(**checked)


def compare(mine: Manifest, theirs: Manifest, *, encode: bool) -> None:
    """Refuse an archive of another tenant, model or embedder; with `encode`, of a tenant only.

    Raises:
        ArchiveError: it is another tenant's.
        IncompatibleMemoryError: another model or embedder wrote it; names each difference.
    """
    if mine.tenant != theirs.tenant:
        raise ArchiveError(
            f"This archive holds memories of tenant {theirs.tenant!r}, this bank is open for "
            f"{mine.tenant!r}. Open it with tenant={theirs.tenant!r}."
        )
    if encode:
        return
    found = [
        phrase.removesuffix("in the bank") + "in the archive"
        for here, there in ((mine.encoding, theirs.encoding), (mine.retrieval, theirs.retrieval))
        for phrase in Identity(here).differences(Identity(there))
    ]
    if mine.kv != theirs.kv:
        found.append(f"K/V: {json.dumps(mine.kv)} here, {json.dumps(theirs.kv)} in the archive")
    if mine.dimensions != theirs.dimensions:
        numbers = f"{mine.dimensions} numbers here, {theirs.dimensions} in the archive"
        found.append(f"vectors: {numbers}")
    if found:
        raise IncompatibleMemoryError(
            f"The archive comes from a bank of another model or embedder: {'; '.join(found)}. "
            "Restore it into a bank of the model that wrote it, or have its text encoded anew: "
            "restore(path, encode=True), memlong import --encode."
        )


def _layers(value: Any) -> list[int]:
    if not isinstance(value, list) or not 0 < len(value) <= 1024:
        raise fields.Wrong("it is not a list of layers")
    found = [fields.number(0, 9999)(each) for each in value]
    if found != sorted(set(found)):
        raise fields.Wrong("it does not ascend")
    return found


def _kv(value: Any) -> dict[str, Any]:
    each = {
        "layers": _layers,
        "kv_heads": fields.number(1, 1 << 12),
        "head_dim": fields.number(1, 1 << 14),
        "dtype": fields.one_of(*_DTYPES),
    }
    return fields.record(value, each, "its manifest, kv,")


def _counted(names: tuple[str, ...], most: int) -> fields.Check:
    each = dict.fromkeys(names, fields.number(0, most))
    return lambda value: fields.record(value, each, "its manifest")


def _checksums(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise fields.Wrong("it is not a list")
    return [fields.hexadecimal(each) for each in value]


_FIELDS: fields.Fields = {
    "format": fields.text,
    "version": fields.number(VERSION, VERSION),
    "tenant": fields.text,
    "created_at": fields.time,
    "encoding": fields.strings,
    "retrieval": fields.strings,
    "kv": _kv,
    "dimensions": fields.number(0, 1 << 16),
    "counts": _counted(_COUNTS, _MANY),
    "parts": _counted(_PARTS, MAX_ENTRIES),
    "checksums": _checksums,
}
