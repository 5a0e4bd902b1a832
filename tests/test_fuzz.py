"""Readers of what comes from outside, on inputs that nobody wrote: our errors, and no others.

Three kinds of input: bytes of no form, true files with some bytes changed, and well-formed values
of the wrong kind. MEMLONG_TESTS=full runs 100,000 and more of them (about ten minutes on a core).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memlong_agent.config import Sampling, Settings
from memlong_agent.errors import MemLongError
from memlong_agent.identity import Identity
from memlong_agent.kv import KVSpec
from memlong_agent.model.load import _memory_of, read_sidecar
from memlong_agent.storage import Storage
from memlong_agent.storage.blobs import FileBlobs
from memlong_agent.storage.kvfile import (
    BlobRef,
    checksum_of,
    header_of,
    spec_from_json,
    spec_to_json,
)

sys.path.insert(0, str(Path(__file__).parent / "storage"))
from archive_forging import (
    ANNA,
    claimed,
    export,
    fill,
    parts_of,
    put_together,
    restore,
    supersede,
)

FULL = os.environ.get("MEMLONG_TESTS") == "full"
SPEC = KVSpec(layers=(1, 3), kv_heads=2, head_dim=4, dtype=torch.float16)
TRUE_KV = header_of(SPEC, 3) + bytes(3 * SPEC.bytes_per_token)


def inputs(few: int, many: int) -> Callable[[Any], Any]:
    """How many inputs a reader gets, in a usual run and in a full one."""
    return settings(
        max_examples=many if FULL else few,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def mutated(draw: Any, true: bytes) -> bytes:
    """A true file with bytes changed, cut out, put in, or cut off."""
    data = bytearray(true)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(("set", "cut", "insert", "truncate", "huge")))
        if how == "set":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif how == "huge":
            data[at : at + 8] = draw(st.sampled_from((b"\xff" * 8, b"\0" * 8, b"\x7f" * 8)))
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        else:
            del data[at:]
    return bytes(data)


NUMBERS = (
    st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.sampled_from((-1, 0, True, 1 << 31, 1 << 63, 1e308, float("nan")))
    | st.just(10).map(lambda ten: ten**5000)  # made late: hypothesis cannot show it
)
TEXTS = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    ("\0", "\ud800", "a" * 32, "../../x", "9" * 5000, "2026-01-01T00:00:00+00:00", "")
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


LATIN = st.binary(max_size=64).map(lambda raw: raw.decode("latin1"))


def deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def allowed(call: Callable[[], object]) -> bool:
    """Whether it came through; one of our errors is as good, any other fails the test."""
    try:
        call()
    except MemLongError as exc:
        str(exc).encode(errors="replace")
        return False
    return True


def as_json(value: Any) -> str:
    """JSON, also of what json.dumps has no digits for."""
    try:
        return json.dumps(value)
    except ValueError:
        return "9" * 6000


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> FileBlobs:
    folder = tmp_path_factory.mktemp("bank")
    (folder / "kv" / "aa").mkdir(parents=True)
    return FileBlobs(folder)


@inputs(300, 25_000)
@given(
    data=st.binary(max_size=200) | mutated(TRUE_KV),
    tokens=st.integers(-2, 6) | st.sampled_from((1 << 20, 1 << 40)),
    believed=st.booleans(),
)
def test_kv_files(blobs: FileBlobs, data: bytes, tokens: int, believed: bool) -> None:
    """Also when the row believes the file: its size and its checksum are those of the bytes."""
    checksum = checksum_of([memoryview(data)]) if believed else "0" * 16
    ref = BlobRef("aa", tokens, len(data) if believed else len(TRUE_KV), checksum)
    blobs.path_of("aa").write_bytes(data)
    allowed(lambda: blobs.read_many(SPEC, [ref]))


def test_a_true_kv_file_is_read(blobs: FileBlobs) -> None:
    blobs.path_of("aa").write_bytes(TRUE_KV)
    ref = BlobRef("aa", 3, len(TRUE_KV), checksum_of([memoryview(TRUE_KV)]))
    assert allowed(lambda: blobs.read_many(SPEC, [ref]))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("source")
    with claimed(folder / "bank") as bank:
        fill(bank)
        supersede(bank, bank.list_memories(ANNA)[3].id, bank.list_memories(ANNA)[1].id)
        export(bank, folder / "true")
    return (folder / "true").read_bytes()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Storage, Path]]:
    folder = tmp_path_factory.mktemp("target")
    with claimed(folder / "bank") as bank:
        yield bank, folder
        assert bank.verify() == [] and bank.stats() == {}
        assert {path.name for path in folder.iterdir()} == {"bank", "fuzzed"}


def assert_refused(target: tuple[Storage, Path], path: Path) -> None:
    came_through = allowed(lambda: restore(target[0], path))
    assert not came_through
    assert target[0].stats() == {}


@inputs(200, 20_000)
@given(data=st.data())
def test_archives_as_bytes(target: tuple[Storage, Path], archive: bytes, data: Any) -> None:
    path = target[1] / "fuzzed"
    given_ = data.draw(st.binary(max_size=300) | mutated(archive))
    path.write_bytes(given_)
    if given_ != archive:
        assert_refused(target, path)


@inputs(200, 20_000)
@given(data=st.data())
def test_archives_whose_checksums_are_true(
    target: tuple[Storage, Path], archive: bytes, data: Any
) -> None:
    """One file inside is changed as bytes, or one field of a record, and all sums are made true."""
    path = target[1] / "fuzzed"
    path.write_bytes(archive)
    parts = parts_of(path)
    name = data.draw(st.sampled_from(list(parts)))
    if name.endswith("safetensors") or data.draw(st.booleans()):
        parts[name] = data.draw(mutated(parts[name]))
    else:
        parts[name] = _with_another_field(data, parts[name], one=name == "manifest.json")
    try:
        put_together(path, parts, true=name != "manifest.json")
    except (ValueError, TypeError):  # a manifest that is no JSON cannot be made true
        return
    # Some changes are harmless (another time, another metadata): then it is taken and read.
    if allowed(lambda: restore(target[0], path)):
        for owner in list(target[0].stats()):
            for memory in target[0].list_memories(owner):
                assert target[0].read_kv(memory.chunk_pks)
            target[0].search(owner, "house")
            target[0].erase(owner, purge=False)


def _with_another_field(data: Any, text: bytes, *, one: bool) -> bytes:
    records = [json.loads(text)] if one else [json.loads(line) for line in text.splitlines()]
    record = data.draw(st.sampled_from(records))
    if record.get("chunks") and data.draw(st.booleans()):
        record = data.draw(st.sampled_from(record["chunks"]))
    record[data.draw(st.sampled_from(sorted(record)) | TEXTS)] = data.draw(VALUES)
    return b"".join(as_json(each).encode(errors="replace") + b"\n" for each in records)


@inputs(300, 15_000)
@given(
    given_=st.dictionaries(
        st.sampled_from([*Settings.model_fields, *Sampling.model_fields, "nonsense"]),
        VALUES | st.sampled_from((500, 2000)).map(deep),
        max_size=3,
    )
)
def test_settings(given_: dict[str, Any]) -> None:
    for model in (Settings, Sampling):
        known = {name: value for name, value in given_.items() if name in model.model_fields}
        came = allowed(partial(model, **given_))
        assert not came or set(given_) <= set(model.model_fields)
        allowed(partial(model, **known))
        allowed(partial(model().replace, **known))


@inputs(300, 15_000)
@given(
    text=TEXTS | st.binary(max_size=64).map(lambda raw: raw.decode("latin1")) | VALUES.map(as_json)
)
def test_identities_and_shapes(text: str) -> None:
    if allowed(lambda: Identity.from_json(text)):
        found = Identity.from_json(text)
        assert Identity.from_json(found.to_json()) == found
        assert found.digest and found.differences(Identity({})) is not None
    if allowed(lambda: spec_from_json(text)):
        assert spec_from_json(spec_to_json(spec_from_json(text))) == spec_from_json(text)


def test_nesting_without_end() -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000, "9" * 5000):
        assert not allowed(partial(Identity.from_json, text))
        assert not allowed(partial(spec_from_json, text))


SIDECAR = {
    "layout": "memlong",
    "readers": {"1": [2, 3]},
    "gates": {"2": [0.0, 0.0], "3": [0.0, 0.0]},
    "position": "zero",
}


class _Config:
    """As much of a model's configuration as a sidecar is compared with."""

    num_hidden_layers = 4
    layer_types = None
    sliding_window = None


@inputs(300, 10_000)
@given(data=st.data())
def test_sidecars(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """memlong.json: as bytes, and with one value of another kind."""
    path = tmp_path_factory.getbasetemp() / "memlong.json"
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(st.binary(max_size=80) | mutated(json.dumps(SIDECAR).encode())))
    else:
        changed: dict[str, Any] = json.loads(json.dumps(SIDECAR))
        inside = data.draw(st.sampled_from((changed, changed["readers"], changed["gates"])))
        inside[data.draw(st.sampled_from(sorted(inside)) | TEXTS)] = data.draw(VALUES)
        path.write_text(as_json(changed), errors="replace")
    config: Any = _Config()
    read: list[Any] = []
    if allowed(
        lambda: read.append(_memory_of(read_sidecar(path.parent), config, torch.device("cpu")))
    ):
        layout, gates, _ = read[0]
        layers = (*layout.memory_layers, *layout.retrieval_layers, *gates)
        assert max(layers) < config.num_hidden_layers


ARGUMENTS = st.sampled_from(
    (
        "--top-k",
        "--limit",
        "--timeout",
        "--temperature",
        "--max-tokens",
        "--seed",
        "--user",
        "--bank",
    )
)

# What a process can be given: bytes without NUL, and numbers.
WORDS = st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
WORDS |= st.sampled_from(("-1", "nan", "inf", "1e999", "9" * 5000, "\u0663", "--", "-"))


@inputs(100, 2000)
@given(
    command=st.sampled_from(("chat", "add", "search", "list", "export", "import", "stats")),
    words=st.lists(ARGUMENTS | WORDS, max_size=6),
)
def test_arguments_of_the_command(command: str, words: list[str]) -> None:
    """Options are read, nothing is opened: a mistake is click's, which is one line and exit 2."""
    import click

    from memlong_agent.cli import main

    try:
        made = main.commands[command].make_context(command, list(words), resilient_parsing=False)
    except click.UsageError as exc:
        assert exc.exit_code == 2 and exc.format_message()
    else:
        assert made.info_name == command
