"""Archives that somebody made to do harm, or that a disk broke: all refused, without a trace.

The bank that they are restored into is compared byte by byte and row by row before and after, and
so are the names beside it.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from archive_forging import (
    ANNA,
    BINARY,
    DIMENSIONS,
    LINES,
    TENANT,
    Parts,
    change_lines,
    change_manifest,
    change_tensor,
    claimed,
    descriptors,
    export,
    fill,
    parts_of,
    put_together,
    restore,
    snapshot,
    supersede,
)
from bank_making import SPEC, memory

from memlong_agent.errors import ArchiveError, IncompatibleMemoryError, MemLongError
from memlong_agent.storage import Storage
from memlong_agent.storage.archive import tensors
from memlong_agent.storage.archive.zipped import ZipWriter

ITEMS, RECALLS, SUPERSEDED = (f"{sort}/000000.jsonl" for sort in ("items", "recalls", "superseded"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A true archive; nobody changes it."""
    folder = tmp_path_factory.mktemp("source")
    with claimed(folder / "bank") as bank:
        fill(bank)
        supersede(bank, bank.list_memories(ANNA)[3].id, bank.list_memories(ANNA)[1].id)
        export(bank, folder / "true")
    return folder / "true"


@pytest.fixture(scope="module")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("target")


@pytest.fixture(scope="module")
def target(target_folder: Path) -> Iterator[Storage]:
    """The bank that is attacked; it holds something already."""
    with claimed(target_folder / "bank") as bank:
        bank.add(ANNA, [memory("mine")])
        yield bank
        assert bank.verify() == []


def tokenized(texts: list[str]) -> list[list[int]]:
    """What the chunks of bank_making have for token ids."""
    return [[70_000 + each for each in range(5)] for _ in texts]


def assert_refused(target: Storage, folder: Path, path: Path, said: str = ".") -> None:
    before, beside, files = snapshot(target, folder), sorted(path.parent.iterdir()), descriptors()
    with pytest.raises((ArchiveError, IncompatibleMemoryError), match=said):
        restore(target, path, tokenize=tokenized)
    assert snapshot(target, folder) == before
    assert sorted(path.parent.iterdir()) == beside
    assert descriptors() == files


def first(change: Callable[[dict[str, Any]], Any]) -> Callable[[list[Any]], Any]:
    return lambda records: change(records[0])


def put(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda record: record.__setitem__(name, value)


def put_chunk(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda record: record["chunks"][0].__setitem__(name, value)


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": [value]}
    return value


# What is changed in the first memory: the change, what the refusal names.
MEMORIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "id not hex": (put("id", "../../etc/passwd"), "wrong id"),
    "id in capitals": (put("id", "A" * 32), "wrong id"),
    "id a number": (put("id", 7), "wrong id"),
    "rank negative": (put("rank", -1), "wrong rank"),
    "rank huge": (put("rank", 1 << 70), "wrong rank"),
    "rank true": (put("rank", True), "wrong rank"),
    "ordinal negative": (put("ordinal", -1), "wrong ordinal"),
    "ordinal huge": (put("ordinal", 10**30), "wrong ordinal"),
    "ordinal a fraction": (put("ordinal", 0.5), "wrong ordinal"),
    "owner of another kind": (put("owner", ["tenant", "x"]), "wrong owner"),
    "owner with a tenant": (put("owner", ["other", "user", "x"]), "wrong owner"),
    "owner without name": (put("owner", ["user", ""]), "wrong owner"),
    "owner an object": (put("owner", {"kind": "user"}), "wrong owner"),
    "role unknown": (put("role", "system"), "wrong role"),
    "role a list": (put("role", ["user"]), "wrong role"),
    "text blank": (put("text", " \n"), "wrong text"),
    "text with NUL": (put("text", "the house is blue\0 noted"), "NUL"),
    "text with a lone surrogate": (put("text", "\ud800 the house is blue noted"), "surrogate"),
    "text of other chunks": (put("text", "the house is red"), "text is not in the memory's"),
    "session with a surrogate": (put("session", "\udcff"), "wrong session"),
    "source a number": (put("source", 5), "wrong source"),
    "message_id an object": (put("message_id", {}), "wrong message_id"),
    "metadata a list": (put("metadata", []), "wrong metadata"),
    "metadata nested 200 deep": (put("metadata", nested(100)), "nested"),
    "metadata not a number": (put("metadata", {"x": float("nan")}), "NaN"),
    "messages without content": (put("messages", [{"role": "user"}]), "wrong messages"),
    "messages not a list": (put("messages", {"role": "user"}), "wrong messages"),
    "date without zone": (put("created_at", "2026-11-20T12:00:00"), "wrong created_at"),
    "date in year 99999": (put("created_at", "99999-01-01T00:00:00+00:00"), "wrong created_at"),
    "date before year 1": (put("created_at", "0001-01-01T00:00:00+23:59"), "wrong created_at"),
    "date a number": (put("expires_at", 1e308), "wrong expires_at"),
    "date missing": (put("created_at", None), "wrong created_at"),
    "recallable 1": (put("recallable", 1), "wrong recallable"),
    "pending": (put("pending", "turn"), "unknown field 'pending'"),
    "tenant": (put("tenant", "other"), "unknown field 'tenant'"),
    "no text": (lambda record: record.pop("text"), "no field 'text'"),
    "no chunks": (put("chunks", []), "no chunks"),
    "chunks an object": (put("chunks", {}), "no chunks"),
    "chunk a number": (put("chunks", [1]), "not a JSON object"),
    "chunk text of another": (put_chunk("text", "I owe you money"), "not in the memory's"),
    "chunk ordinal negative": (put_chunk("ordinal", -1), "wrong ordinal"),
    "chunk ordinal twice": (put_chunk("ordinal", 1), "out of order"),
    "chunk tokens zero": (put_chunk("tokens", 0), "wrong tokens"),
    "chunk tokens huge": (put_chunk("tokens", 1 << 40), "wrong tokens"),
    "chunk tokens not those of its K/V": (put_chunk("tokens", 6), "not as large"),
    "chunk vector yes": (put_chunk("vector", "yes"), "wrong vector"),
    "chunk without its vector": (put_chunk("vector", False), "not as large"),
    "chunk counter negative": (put_chunk("counter", -5), "wrong counter"),
    "chunk counter huge": (put_chunk("counter", 1 << 40), "wrong counter"),
    "chunk recalled in no zone": (put_chunk("last_recalled_at", "2026-01-01"), "last_recalled"),
    "chunk header with NUL": (put_chunk("header", "\0"), "wrong header"),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_a_memory_that_no_bank_holds(
    archive: Path, target: Storage, target_folder: Path, tmp_path: Path, name: str
) -> None:
    change, said = MEMORIES[name]
    parts = parts_of(archive)
    change_lines(parts, LINES, first(change))
    put_together(tmp_path / "forged", parts)
    assert_refused(target, target_folder, tmp_path / "forged", said)


def stranger(record: dict[str, Any]) -> None:
    record["memory_id"] = "f" * 32


def swap(record: dict[str, Any]) -> None:
    record["memory_id"], record["superseded_by"] = record["superseded_by"], record["memory_id"]


def circle(records: list[Any]) -> None:
    records.append(dict(records[0]))
    swap(records[1])


# What is changed in another file of lines: the file, the change, what the refusal names.
LINKS: dict[str, tuple[str, Callable[[list[Any]], Any], str]] = {
    "recall of a stranger": (RECALLS, first(stranger), "not in it"),
    "recall of no chunk": (RECALLS, first(put("chunk", 99)), "a chunk that is not in it"),
    "recall twice": (RECALLS, lambda records: records.append(records[0]), "twice|other"),
    "recall score infinite": (RECALLS, first(put("score", float("inf"))), "Infinity"),
    "recall score of 400 digits": (RECALLS, first(put("score", 10**400)), "wrong score"),
    "recall rank negative": (RECALLS, first(put("rank", -1)), "wrong rank"),
    "superseded by a stranger": (SUPERSEDED, first(put("superseded_by", "f" * 32)), "same owner"),
    "stranger superseded": (SUPERSEDED, first(stranger), "not in it"),
    "superseded by itself": (
        SUPERSEDED,
        first(lambda record: put("superseded_by", record["memory_id"])(record)),
        "in a circle",
    ),
    "superseded in a circle": (SUPERSEDED, circle, "in a circle|other memories"),
    "item of a stranger's memory": (ITEMS, first(stranger), "not in it"),
    "item of another owner": (ITEMS, first(put("owner", ["user", "eve"])), "another owner"),
    "item of another tenant": (ITEMS, first(put("tenant", "theirs")), "unknown field 'tenant'"),
    "item twice": (ITEMS, lambda records: records.append(records[1]), "twice|other"),
    "item with a control label": (ITEMS, first(put("namespace", ["a\x1fb"])), "namespace"),
    "item with a blank label": (ITEMS, first(put("namespace", [" "])), "namespace"),
    "item key with NUL": (ITEMS, first(put("key", "\0")), "wrong key"),
    "item with more vectors": (ITEMS, first(put("vectors", 60_000)), "not as large"),
    "item with a ttl of infinity": (ITEMS, first(put("ttl_s", float("inf"))), "Infinity"),
    "item value not an object": (ITEMS, first(put("value", [1])), "wrong value"),
}


@pytest.mark.parametrize("name", LINKS)
def test_what_hangs_on_nothing_or_on_strangers(
    archive: Path, target: Storage, target_folder: Path, tmp_path: Path, name: str
) -> None:
    file, change, said = LINKS[name]
    parts = parts_of(archive)
    change_lines(parts, file, change)
    put_together(tmp_path / "forged", parts)
    assert_refused(target, target_folder, tmp_path / "forged", said)


def two_of_one_id(records: list[Any]) -> None:
    records[1]["id"] = records[0]["id"]


def two_of_one_message(records: list[Any]) -> None:
    records[1]["message_id"] = records[0]["message_id"]


@pytest.mark.parametrize("change", [two_of_one_id, two_of_one_message])
def test_two_memories_with_one_key(
    archive: Path,
    target: Storage,
    target_folder: Path,
    tmp_path: Path,
    change: Callable[[list[Any]], None],
) -> None:
    parts = parts_of(archive)
    change_lines(parts, LINES, change)
    put_together(tmp_path / "forged", parts)
    assert_refused(target, target_folder, tmp_path / "forged", "twice")


def put_at(at: int, value: float) -> Callable[[Any], None]:
    return lambda array: array.__setitem__(at, value)


TENSORS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "vector with NaN": ("vectors", put_at(0, float("nan")), "not of length 1"),
    "vector with infinity": ("vectors", put_at(0, float("inf")), "not of length 1"),
    "vector of length 2": ("vectors", lambda array: array.__imul__(2), "not of length 1"),
    "vector of zeros": ("vectors", lambda array: array.fill(0), "not of length 1"),
    "vector overflowing": ("vectors", lambda array: array.fill(3e38), "not of length 1"),
    "K/V with NaN": ("kv", put_at(3, float("nan")), "not finite"),
    "K/V with infinity": ("kv", put_at(3, float("inf")), "not finite"),
    "K/V checksum": ("kv_checksums", put_at(0, 1), "wrong checksum"),
    "token ids of another text": ("token_ids", put_at(0, 1), "not its text's"),
    "token ids out of the vocabulary": ("token_ids", put_at(0, 2**32 - 1), "not its text's"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_numbers_that_no_model_made(
    archive: Path, target: Storage, target_folder: Path, tmp_path: Path, name: str
) -> None:
    tensor, change, said = TENSORS[name]
    parts = parts_of(archive)
    change_tensor(parts, tensor, change)
    put_together(tmp_path / "forged", parts)
    assert_refused(target, target_folder, tmp_path / "forged", said)


def true_header(parts: Parts) -> bytes:
    return parts[BINARY][: 8 + int.from_bytes(parts[BINARY][:8], "little")]


def other_header(parts: Parts, change: Callable[[dict[str, Any]], Any]) -> None:
    header = true_header(parts)
    entries = json.loads(header[8:])
    change(entries)
    text = json.dumps(entries, separators=(",", ":")).encode().ljust(len(header) - 8)
    parts[BINARY] = len(text).to_bytes(8, "little") + text + parts[BINARY][len(header) :]


def absurd_length(parts: Parts) -> None:
    parts[BINARY] = b"\xff" * 8 + parts[BINARY][8:]


HEADERS: dict[str, Callable[[Parts], Any]] = {
    "length of 16 exabytes": absurd_length,
    "no bytes": lambda parts: parts.__setitem__(BINARY, b""),
    "seven bytes": lambda parts: parts.__setitem__(BINARY, b"\0" * 7),
    "a byte too many": lambda parts: parts.__setitem__(BINARY, parts[BINARY] + b"\0"),
    "a byte too few": lambda parts: parts.__setitem__(BINARY, parts[BINARY][:-1]),
    "shape of 2**62": lambda p: other_header(p, lambda e: e["kv"].update(shape=[1 << 62])),
    "shape negative": lambda p: other_header(p, lambda e: e["kv"].update(shape=[-1])),
    "dtype unknown": lambda p: other_header(p, lambda e: e["kv"].update(dtype="PICKLE")),
    "dtype wider": lambda p: other_header(p, lambda e: e["kv"].update(dtype="F64")),
    "offsets overlapping": lambda p: other_header(
        p, lambda e: e["kv"].update(data_offsets=e["vectors"]["data_offsets"])
    ),
    "another tensor": lambda p: other_header(p, lambda e: e.update(x=e.pop("kv"))),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_tensors_that_lie(
    archive: Path, target: Storage, target_folder: Path, tmp_path: Path, name: str
) -> None:
    parts = parts_of(archive)
    HEADERS[name](parts)
    put_together(tmp_path / "forged", parts)
    assert_refused(target, target_folder, tmp_path / "forged", "larg|header|short|long")


MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "another format": ({"format": "tar"}, "archive of memories"),
    "a later version": ({"version": 2}, "reads version 1. Upgrade"),
    "version true": ({"version": True}, "version"),
    "another tenant": ({"tenant": "theirs"}, "tenant 'theirs'"),
    "another model": ({"encoding": {"embeddings": "x", "tokenizer": "bbbb"}}, "embeddings: aaaa"),
    "no model": ({"encoding": None}, "wrong encoding"),
    "another embedder": ({"retrieval": {"embedder": "x"}}, "embedder: test here"),
    "more memories": ({"counts": {"memories": 99}}, "counts"),
    "counts of 2**80": ({"counts": {"memories": 1 << 80}}, "wrong memories"),
    "a billion parts": ({"parts": {"memories": 10**9}}, "wrong memories"),
    "no checksums": ({"checksums": []}, "checksum"),
    "checksums of other length": ({"checksums": ["ab"]}, "checksum"),
    "an unknown field": ({"command": "rm -rf"}, "unknown field 'command'"),
    "dimensions negative": ({"dimensions": -1}, "wrong dimensions"),
    "other dimensions": ({"dimensions": 7}, "6 numbers here, 7 in the archive"),
    "date without zone": ({"created_at": "2026-01-01"}, "created_at"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_that_lie(
    archive: Path, target: Storage, target_folder: Path, tmp_path: Path, name: str
) -> None:
    changes, said = MANIFESTS[name]
    parts = parts_of(archive)
    change_manifest(parts, **changes)
    put_together(tmp_path / "forged", parts, true="checksums" not in changes)
    assert_refused(target, target_folder, tmp_path / "forged", said)


@pytest.mark.parametrize(
    "kv",
    [
        {"layers": [1]},
        {"layers": []},
        {"layers": [5, 3]},
        {"layers": list(range(5000))},
        {"kv_heads": 0},
        {"head_dim": 1 << 40},
        {"dtype": "object"},
    ],
)
def test_shapes_of_another_model(
    archive: Path, target: Storage, target_folder: Path, tmp_path: Path, kv: dict[str, Any]
) -> None:
    parts = parts_of(archive)
    true = json.loads(parts["manifest.json"])["kv"]
    change_manifest(parts, kv={**true, **kv})
    put_together(tmp_path / "forged", parts)
    assert_refused(target, target_folder, tmp_path / "forged", "K/V|kv|manifest")


RAW: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{\n", "not JSON"),
    "a list": (b"[]\n", "not a JSON object"),
    "a number of 5,000 digits": (b"9" * 5000 + b"\n", "not JSON"),
    "100,000 brackets": (b"[" * 100_000 + b"\n", "not JSON"),
    "not UTF-8": (b'{"a": "\xff"}\n', "not UTF-8"),
    "half a line": (b'{"a": 1}', "half a line"),
    "nothing": (b"", "half a line"),
    "5,000 lines": (b"{}\n" * 5000, "too many lines"),
    "a BOM": (b"\xef\xbb\xbf{}\n", "not JSON"),
}


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("file", [LINES, ITEMS, RECALLS, SUPERSEDED])
def test_lines_that_are_none(
    archive: Path, target: Storage, target_folder: Path, tmp_path: Path, name: str, file: str
) -> None:
    data, said = RAW[name]
    parts = parts_of(archive)
    parts[file] = data
    put_together(tmp_path / "forged", parts)
    assert_refused(target, target_folder, tmp_path / "forged", said)


def test_checksums_of_every_file_are_compared(
    archive: Path, target: Storage, target_folder: Path, tmp_path: Path
) -> None:
    for name in parts_of(archive):
        parts = parts_of(archive)
        data = bytearray(parts[name])
        data[-2 if name.endswith("jsonl") else -1] ^= 1
        parts[name] = bytes(data)
        put_together(tmp_path / "forged", parts, true=False)
        assert_refused(target, target_folder, tmp_path / "forged")


NAMES = [
    "../../../tmp/evil",
    "/etc/cron.d/evil",
    "memories/../../evil.jsonl",
    "..\\evil",
    "memories/000001.jsonl",
    "memories/999999999999.jsonl",
    "C:evil",
    "x" * 65,
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere(
    archive: Path, target: Storage, target_folder: Path, tmp_path: Path, name: str
) -> None:
    parts = parts_of(archive)
    for old in (LINES, BINARY):
        renamed = {name if key == old else key: data for key, data in parts.items()}
        put_together(tmp_path / "forged", renamed)
        assert_refused(target, target_folder, tmp_path / "forged", "lists other|not give")
    added = {name: b"evil", **parts}
    put_together(tmp_path / "forged", added)
    assert_refused(target, target_folder, tmp_path / "forged")


def test_files_in_another_order_or_missing(
    archive: Path, target: Storage, target_folder: Path, tmp_path: Path
) -> None:
    parts = parts_of(archive)
    for left_out in parts:
        fewer = {name: data for name, data in parts.items() if name != left_out}
        put_together(tmp_path / "forged", fewer, true=left_out != "manifest.json")
        assert_refused(target, target_folder, tmp_path / "forged")
    *names, last = parts
    turned = {name: parts[name] for name in [*reversed(names), last]}
    put_together(tmp_path / "forged", turned)
    assert_refused(target, target_folder, tmp_path / "forged", "lists other")


def test_one_name_twice(
    archive: Path, target: Storage, target_folder: Path, tmp_path: Path
) -> None:
    with (tmp_path / "forged").open("w+b") as file:
        writer = ZipWriter(file.fileno())
        for name, data in [(LINES, b"{}\n"), *parts_of(archive).items()]:
            writer.add(name, [data])
        writer.finish()
    assert_refused(target, target_folder, tmp_path / "forged", "there twice")


def zipped(path: Path, archive: Path, **options: Any) -> None:
    """The same files, by Python's own ZIP writer."""
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in parts_of(archive).items():
            info = zipfile.ZipInfo(name)
            info.compress_type = options.get("compression", zipfile.ZIP_STORED)
            file.writestr(info, data)


def link(path: Path, archive: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo("memories/000000.jsonl")
        info.external_attr = 0o120777 << 16
        file.writestr(info, "/etc/passwd")


def bomb(path: Path, archive: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(LINES, b"\0" * (64 << 20))


def patched(path: Path, archive: Path, at: int, data: bytes) -> None:
    whole = bytearray(archive.read_bytes())
    at = at if at >= 0 else len(whole) + at
    whole[at : at + len(data)] = data
    path.write_bytes(whole)


def overlapping(path: Path, archive: Path) -> None:
    """Two entries of the directory that begin at one place."""
    whole = archive.read_bytes()
    at = whole.rindex(b"PK\1\2")
    length = struct.unpack_from("<H", whole, at + 28)[0]
    patched(path, archive, at + 46 + length + 20, bytes(8))


def directory_fields(at: int, data: bytes) -> Callable[[Path, Path], None]:
    def change(path: Path, archive: Path) -> None:
        patched(path, archive, archive.read_bytes().index(b"PK\1\2") + at, data)

    return change


ZIPS: dict[str, Callable[[Path, Path], Any]] = {
    "written by another program": zipped,
    "deflated": lambda path, archive: zipped(path, archive, compression=zipfile.ZIP_DEFLATED),
    "a symbolic link": link,
    "a bomb of 64 MiB": bomb,
    "overlapping entries": overlapping,
    "encrypted entry": directory_fields(8, b"\1\0"),
    "deflated, it says": directory_fields(10, b"\x08\0"),
    "a link, it says": directory_fields(38, struct.pack("<I", 0o120777 << 16)),
    "a wrong CRC": directory_fields(16, b"\0\0\0\0"),
    "another local header": lambda path, archive: patched(path, archive, 6, b"\1\0"),
    "another local name": lambda path, archive: patched(path, archive, 30, b"/"),
    "2**60 entries": lambda path, archive: patched(
        path, archive, -98 + 24, struct.pack("<Q", 1 << 60)
    ),
    "directory beyond the end": lambda path, archive: patched(
        path, archive, -98 + 48, struct.pack("<Q", (1 << 64) - 1)
    ),
    "truncated by a byte": lambda path, archive: path.write_bytes(archive.read_bytes()[:-1]),
    "truncated to a half": lambda path, archive: path.write_bytes(
        archive.read_bytes()[: archive.stat().st_size // 2]
    ),
    "trailing garbage": lambda path, archive: path.write_bytes(archive.read_bytes() + b"\0"),
    "leading garbage": lambda path, archive: path.write_bytes(
        b"#!/bin/sh\n" + archive.read_bytes()
    ),
    "with a comment": lambda path, archive: path.write_bytes(
        archive.read_bytes()[:-2] + b"\4\0evil"
    ),
    "two archives in one": lambda path, archive: path.write_bytes(archive.read_bytes() * 2),
    "empty": lambda path, archive: path.write_bytes(b""),
    "a text": lambda path, archive: path.write_text("hello"),
    "a sparse gigabyte": lambda path, archive: (path.touch(), os.truncate(path, 1 << 30)),
}


@pytest.mark.parametrize("name", ZIPS)
def test_files_that_are_another_zip_or_none(
    archive: Path, target: Storage, target_folder: Path, tmp_path: Path, name: str
) -> None:
    ZIPS[name](tmp_path / "forged", archive)
    assert_refused(target, target_folder, tmp_path / "forged", "not an archive that memlong wrote")


def test_places_that_are_no_files(target: Storage, target_folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    places = [tmp_path / name for name in ("fifo", "folder", "loop", "nothing")]
    for path in places:
        assert_refused(target, target_folder, path)
    for path in (Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(ArchiveError):
            restore(target, path)


def test_a_file_that_may_not_be_read(
    archive: Path, target: Storage, target_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "forged"
    path.write_bytes(archive.read_bytes())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert_refused(target, target_folder, path, "Give this user the permission")


def test_a_file_that_changes_while_it_is_read(
    archive: Path, target: Storage, target_folder: Path, tmp_path: Path
) -> None:
    """Checked is what was read first; the K/V are read again, and compared."""
    path = tmp_path / "forged"
    path.write_bytes(archive.read_bytes())
    before = snapshot(target, target_folder)
    whole = path.read_bytes()
    at = whole.index(parts_of(archive)[BINARY]) + len(parts_of(archive)[BINARY]) - 100

    def change(done: float) -> None:
        if done >= 0.39:  # everything is checked
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes(each ^ 1 for each in whole[at : at + 8]))

    with pytest.raises(MemLongError, match="was changed while it was read"):
        target.archives.restore(path, tenant=TENANT, dimensions=DIMENSIONS, progress=change)
    assert snapshot(target, target_folder) == before


def test_the_header_of_the_forge_is_that_of_the_format(archive: Path) -> None:
    parts = parts_of(archive)
    assert true_header(parts) == tensors.header_of(SPEC, tensors.Sizes(9, 45, 9, DIMENSIONS))
