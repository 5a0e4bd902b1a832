"""Archives taken apart and put together again, well-formed around whatever a test changed in them.

Checksums, CRCs, directory and manifest are made true again, so that a test reaches the check that
it is about and not the first one on the way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from bank_making import EMBEDDER, MODEL, SPEC, memory, vector_of
from sqlalchemy import select, update

from memlong_agent.storage import Binding, Counted, Manifest, NewItem, Owner, RecallMark, Storage
from memlong_agent.storage.archive import tensors
from memlong_agent.storage.archive.zipped import ZipWriter, read_entries, read_entry
from memlong_agent.storage.models import memories

TENANT, DIMENSIONS = "default", 6
ANNA, BEN = Owner(TENANT, "user", "anna"), Owner(TENANT, "session", "ben")
Parts = dict[str, bytes]
"""Content by name, in order; the manifest is the last."""
LINES, BINARY = "memories/000000.jsonl", "memories/000000.safetensors"


def claimed(path: Path | str, **options: Any) -> Storage:
    storage = Storage.open(path, **options)
    storage.claim(MODEL, SPEC)
    storage.claim_retrieval(EMBEDDER)
    return storage


def fill(bank: Storage) -> None:
    """Two owners with all that a bank can hold: sections, items, recalls, a superseded memory."""
    talk = [
        memory(
            f"the {word} is blue",
            "noted",
            session="s",
            message_id=word,
            messages=[
                {"role": "user", "content": f"the {word} is blue"},
                {"role": "assistant", "content": "noted"},
            ],
            metadata={"n": [1, None, {"x": "ü"}]},
            turn=f"turn-{word}",
        )
        for word in ("house", "boat", "car")
    ]
    house, boat, _ = bank.add(ANNA, talk)
    bank.add(ANNA, [memory("one", "two", role="document", source="book", ordinal=0)])
    bank.add(BEN, [memory("a secret", role="user", recallable=False)])
    mark = RecallMark(house.chunk_pks[0], 0, 0.5, 0.25)
    bank.record_recalls(ANNA, "turn-boat", [mark, RecallMark(boat.chunk_pks[1], 1, 0.1)])
    bound = Binding(ANNA, boat.id)
    bank.items.put(
        TENANT, NewItem(("anna", "facts"), "k", {"v": 1}, vector_of("x")[None], bound=bound)
    )
    bank.items.put(TENANT, NewItem(("all",), "free", {"v": 2}, ttl_s=1e6))


def supersede(bank: Storage, old: str, new: str) -> None:
    with bank._db.scope(write=True) as conn:
        pk = conn.scalar(select(memories.c.pk).where(memories.c.id == new))
        conn.execute(update(memories).where(memories.c.id == old).values(superseded_by=pk))


def export(bank: Storage, path: Path, owner: Owner | None = None) -> Manifest:
    return bank.archives.export(path, tenant=TENANT, owner=owner, dimensions=DIMENSIONS)


def restore(bank: Storage, path: Path, **options: Any) -> Counted:
    return bank.archives.restore(path, tenant=TENANT, dimensions=DIMENSIONS, **options)


def parts_of(path: Path) -> Parts:
    with path.open("rb") as file:
        entries = read_entries(file.fileno(), path.stat().st_size)
        return {entry.name: b"".join(read_entry(file.fileno(), entry)) for entry in entries}


def put_together(path: Path, parts: Parts, *, true: bool = True) -> None:
    """Write the archive; with `true` the manifest's checksums are made those of the parts."""
    *names, last = parts
    if true:
        manifest = json.loads(parts[last])
        manifest["checksums"] = [xxhash.xxh3_128_hexdigest(parts[name]) for name in names]
        parts = {**parts, last: json.dumps(manifest).encode()}
    with path.open("w+b") as file:
        writer = ZipWriter(file.fileno())
        for name, data in parts.items():
            writer.add(name, [data])
        writer.finish()


def change_lines(parts: Parts, name: str, change: Callable[[list[Any]], Any]) -> None:
    """Change the records of a file of lines in place."""
    records = [json.loads(line) for line in parts[name].splitlines()]
    change(records)
    parts[name] = b"".join(json.dumps(each).encode() + b"\n" for each in records)


def change_manifest(archive: Parts, /, **changes: Any) -> None:
    """Other values of some fields; of `counts` and `parts` those that are named."""
    manifest = json.loads(archive["manifest.json"])
    for name in {"counts", "parts"} & set(changes):
        changes[name] = {**manifest[name], **changes[name]}
    archive["manifest.json"] = json.dumps({**manifest, **changes}).encode()


def change_tensor(parts: Parts, name: str, change: Callable[[Any], Any]) -> None:
    """Change one tensor of the memories' binary part in place; K/V checksums are made true."""
    records = [json.loads(line) for line in parts[LINES].splitlines()]
    chunks = [chunk for record in records for chunk in record["chunks"]]
    tokens = sum(chunk["tokens"] for chunk in chunks)
    vectors = sum(chunk["vector"] for chunk in chunks)
    header = tensors.header_of(SPEC, tensors.Sizes(len(chunks), tokens, vectors, DIMENSIONS))
    data = bytearray(parts[BINARY])
    entries = json.loads(header[8:])
    begin, end = (len(header) + at for at in entries[name]["data_offsets"])
    kinds = {"kv_checksums": "<u8", "token_ids": "<u4", "vectors": "<f4"}
    if name in kinds:
        array = np.frombuffer(data[begin:end], kinds[name]).copy()
        change(array)
        data[begin:end] = array.tobytes()
    else:
        tensor = torch.frombuffer(data[begin:end], dtype=SPEC.dtype).clone()
        change(tensor)
        data[begin:end] = tensor.view(torch.uint8).numpy().tobytes()
        at, sums = begin, []
        for chunk in chunks:
            size = chunk["tokens"] * SPEC.bytes_per_token
            sums.append(xxhash.xxh3_64_intdigest(bytes(data[at : at + size])))
            at += size
        data[len(header) : len(header) + 8 * len(sums)] = np.array(sums, "<u8").tobytes()
    parts[BINARY] = bytes(data)


def snapshot(bank: Storage, folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """Every byte below a folder but SQLite's log, and every row of every table."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }
    with bank._db.scope() as conn:
        names = conn.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = sorted(name for (name,) in names)
        rows = [
            f"{table}: {tuple(row)}"
            for table in tables
            for row in conn.exec_driver_sql(f'SELECT * FROM "{table}" ORDER BY 1')
        ]
    return files, rows


def descriptors() -> int:
    """Open files of this process."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
