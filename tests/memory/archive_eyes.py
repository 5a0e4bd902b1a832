"""An archive as a stranger's program sees it: with zipfile, json and safetensors alone.

In: a file. Out: its lines and, of each chunk and item, the tensors that belong to it.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """One chunk: its line, and what lies beside the lines."""

    line: Line
    token_ids: torch.Tensor  # (C,)
    vector: torch.Tensor | None  # (E,)
    kv: torch.Tensor  # flat: keys, then values, each (L_mem, H_kv, C, D)


@dataclass(frozen=True, slots=True)
class Archive:
    """All that one archive holds."""

    memories: list[Line]
    parts: list[Part]
    items: list[tuple[Line, torch.Tensor]]  # vectors (n, E)
    recalls: list[Line]
    superseded: list[Line]
    manifest: Line

    @property
    def lines(self) -> list[Line]:
        items = [line for line, _ in self.items]
        return [*self.memories, *items, *self.recalls, *self.superseded]


def read_archive(path: Path) -> Archive:
    """Everything in it; each tensor must be used up by the lines beside it."""
    found = Archive([], [], [], [], [], {})
    with zipfile.ZipFile(path) as file:
        for name in sorted(file.namelist()):
            sort, _, rest = name.partition("/")
            data = file.read(name)
            if name == "manifest.json":
                found.manifest.update(json.loads(data))
            elif rest.endswith(".jsonl"):
                lines = [json.loads(line) for line in data.splitlines()]
                beside = name.replace(".jsonl", ".safetensors")
                if sort == "memories":
                    found.memories.extend(lines)
                    found.parts.extend(_parts(lines, load(file.read(beside))))
                elif sort == "items":
                    found.items.extend(_items(lines, load(file.read(beside))))
                else:
                    getattr(found, sort).extend(lines)
    return found


def _parts(lines: list[Line], tensors: dict[str, torch.Tensor]) -> list[Part]:
    chunks = [chunk for line in lines for chunk in line["chunks"]]
    tokens = [chunk["tokens"] for chunk in chunks]
    width = tensors["kv"].numel() // sum(tokens)  # numbers of one token
    kv = tensors["kv"].split([width * each for each in tokens])
    vectors = iter(tensors["vectors"])
    made = [
        Part(chunk, ids, next(vectors) if chunk["vector"] else None, own)
        for chunk, ids, own in zip(chunks, tensors["token_ids"].split(tokens), kv, strict=True)
    ]
    assert next(vectors, None) is None
    return made


def _items(lines: list[Line], tensors: dict[str, torch.Tensor]) -> list[tuple[Line, torch.Tensor]]:
    counts = [line["vectors"] for line in lines]
    return list(zip(lines, tensors["vectors"].split(counts), strict=True))
