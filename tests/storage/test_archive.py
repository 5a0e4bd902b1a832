"""Export and restore: what comes back is what was there, and what stays out stays out."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from archive_forging import (
    ANNA,
    BEN,
    DIMENSIONS,
    LINES,
    TENANT,
    change_lines,
    claimed,
    export,
    fill,
    parts_of,
    put_together,
    restore,
    snapshot,
    supersede,
)
from bank_making import EMBEDDER, MODEL, NOON, SPEC, Clock, memory
from sqlalchemy import select

from memlong_agent.errors import ArchiveError, ConfigError, IncompatibleMemoryError, StoreError
from memlong_agent.identity import Identity
from memlong_agent.storage import Key, NewItem, NewMemory, Owner, Storage, StoredChunk, StoredMemory
from memlong_agent.storage.archive import export as exporting
from memlong_agent.storage.models import memories, recalls


@pytest.fixture
def other(tmp_path: Path, clock: Clock) -> Iterator[Storage]:
    """Another bank of the same model, in a folder."""
    with claimed(tmp_path / "other", clock=clock) as storage:
        yield storage
        assert storage.verify() == []


@pytest.fixture
def plain(tmp_path: Path, clock: Clock) -> Iterator[Storage]:
    """One kind of bank, where the kind makes no difference."""
    with claimed(tmp_path / "bank", clock=clock) as storage:
        yield storage


def without_keys(memory: StoredMemory) -> StoredMemory:
    return replace(memory, pk=0, chunk_pks=())


def chunks_of(bank: Storage, owner: Owner) -> list[StoredChunk]:
    """In the order of their keys, which decides ties."""
    keys = [pk for memory in bank.list_memories(owner) for pk in memory.chunk_pks]
    return bank.chunks(owner, sorted(keys))


def assert_same(one: Storage, two: Storage, owner: Owner) -> None:
    listed = [[without_keys(each) for each in bank.list_memories(owner)] for bank in (one, two)]
    assert listed[0] == listed[1]
    ours, theirs = chunks_of(one, owner), chunks_of(two, owner)
    assert [replace(each, pk=0, memory_pk=0) for each in ours] == [
        replace(each, pk=0, memory_pk=0) for each in theirs
    ]
    keys = [each.pk for each in ours], [each.pk for each in theirs]
    for mine, its in zip(one.read_kv(keys[0]), two.read_kv(keys[1]), strict=True):
        assert torch.equal(mine.keys, its.keys) and torch.equal(mine.values, its.values)
    vectors = one.vectors_of(owner, keys[0])[1], two.vectors_of(owner, keys[1])[1]
    assert np.array_equal(*vectors)
    for question in ("house", "blue boat car", "noted", "two"):
        found = [
            [(hit.chunk.memory_id, hit.chunk.ordinal, hit.score, hit.rare) for hit in hits]
            for hits in (one.search(owner, question), two.search(owner, question))
        ]
        assert found[0] == found[1]


def recall_log(bank: Storage) -> list[tuple[object, ...]]:
    query = select(recalls, memories.c.id.label("memory")).join(
        memories, memories.c.pk == recalls.c.memory_pk
    )
    with bank._db.scope() as conn:
        return [
            (row.turn, row.memory, row.rank, row.score, row.attention_mass, row.at)
            for row in conn.execute(query.order_by(recalls.c.pk))
        ]


def test_a_bank_comes_back_whole(bank: Storage, other: Storage, tmp_path: Path) -> None:
    fill(bank)
    _, car, boat, house = bank.list_memories(ANNA)
    supersede(bank, house.id, car.id)
    bank.replace(ANNA, boat.id, memory("the boat is red", "noted", session="s", message_id="boat"))
    manifest = export(bank, tmp_path / "all.memlong")
    assert manifest.counts["memories"] == 5
    counted = restore(other, tmp_path / "all.memlong")
    assert (counted.memories, counted.present, counted.items) == (5, 0, 2)
    for owner in (ANNA, BEN):
        assert_same(bank, other, owner)
    assert other.get(ANNA, house.id).superseded_by == car.id
    assert recall_log(other) == recall_log(bank) != []
    for place in ((("anna", "facts"), "k"), (("all",), "free")):
        mine, its = bank.items.get(TENANT, *place), other.items.get(TENANT, *place)
        assert mine is not None and its is not None
        assert asdict(replace(mine, pk=0)) == asdict(replace(its, pk=0))
    assert other.items.list(TENANT, ("anna",), limit=1, vectors=True)[0].vectors is not None


def test_what_is_restored_goes_on_as_before(bank: Storage, other: Storage, tmp_path: Path) -> None:
    fill(bank)
    export(bank, tmp_path / "all.memlong")
    restore(other, tmp_path / "all.memlong")
    for each in (bank, other):
        again = memory("one", "two", role="document", source="book", ordinal=0)
        (section,) = each.add(ANNA, [again])
        assert len(each.list_memories(ANNA)) == 4  # the section is known, it is not written twice
        each.delete(ANNA, [section.id])
        each.delete(BEN, [memory.id for memory in each.list_memories(BEN)])
    assert_same(bank, other, ANNA)


def test_a_memory_of_which_parts_were_evicted_keeps_its_ordinals(
    bank: Storage, other: Storage, tmp_path: Path
) -> None:
    (stored,) = bank.add(ANNA, [memory("first", "second", "third")])
    bank.delete_chunks(ANNA, [stored.chunk_pks[1]])
    export(bank, tmp_path / "x")
    restore(other, tmp_path / "x")
    assert [each.ordinal for each in chunks_of(other, ANNA)] == [0, 2]
    assert_same(bank, other, ANNA)


@pytest.mark.parametrize("key", [None, Key(bytes(range(32)))])
def test_a_document_of_which_parts_were_evicted_is_known_when_it_is_read_again(
    plain: Storage, tmp_path: Path, clock: Clock, key: Key | None
) -> None:
    """Its digest is of what was left, for an archive takes no secrets along: its text tells."""
    book = {"role": "document", "source": "book", "ordinal": 0}
    (stored,) = plain.add(ANNA, [memory("first", "second", "third", **book)])
    plain.delete_chunks(ANNA, stored.chunk_pks[:2])
    export(plain, tmp_path / "x")
    with claimed(tmp_path / "new", clock=clock, key=key) as new:
        restore(new, tmp_path / "x")
        again = new.add(ANNA, [memory("first", "second", "third", **book)])
        assert [each.id for each in again] == [stored.id]
        assert [each.text for each in new.list_memories(ANNA)] == ["first second third"]
        assert new.add(ANNA, [memory("first", "second", "third", **book)]) == again
        for other in ({"source": "another"}, {"ordinal": 1}, {"role": "exchange"}):
            new.add(ANNA, [memory("first", "second", "third", **{**book, **other})])
        new.add(ANNA, [memory("first", "second", **book)])  # another edition
        assert len(new.list_memories(ANNA)) == 5
        assert new.verify() == []
    assert plain.add(ANNA, [memory("first", "second", "third", **book)])[0].text == "third"


def test_one_owner_takes_nothing_of_another(plain: Storage, other: Storage, tmp_path: Path) -> None:
    fill(plain)
    export(plain, tmp_path / "ben", BEN)
    assert b"house" not in (tmp_path / "ben").read_bytes()
    assert b"anna" not in (tmp_path / "ben").read_bytes()
    restore(other, tmp_path / "ben")
    assert {owner for owner, has in other.stats().items() if has.memories} == {BEN}
    assert other.items.namespaces(TENANT) == []
    export(plain, tmp_path / "anna", ANNA)
    assert restore(other, tmp_path / "anna").items == 1


def test_of_another_tenant_nothing_is_exported(plain: Storage, tmp_path: Path) -> None:
    fill(plain)
    plain.add(Owner("theirs", "user", "anna"), [memory("not ours")])
    manifest = export(plain, tmp_path / "x")
    assert manifest.counts["memories"] == 5
    assert b"not ours" not in (tmp_path / "x").read_bytes()


def test_what_a_running_turn_has_pending_is_left_out(plain: Storage, tmp_path: Path) -> None:
    plain.add(ANNA, [memory("done"), memory("half said", pending="turn")])
    manifest = export(plain, tmp_path / "x")
    assert manifest.counts["memories"] == 1
    assert b"half said" not in (tmp_path / "x").read_bytes()


def test_the_file_is_a_zip_of_json_lines_and_safetensors(plain: Storage, tmp_path: Path) -> None:
    fill(plain)
    export(plain, tmp_path / "x.memlong")
    path = tmp_path / "x.memlong"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[-1] == "manifest.json"
        assert {each.compress_type for each in archive.infolist()} == {zipfile.ZIP_STORED}
        tensors = safetensors.torch.load(archive.read("memories/000000.safetensors"))
        text = archive.read(LINES).decode()
    assert tensors["token_ids"].dtype == torch.uint32 and tensors["kv"].dtype == SPEC.dtype
    assert tuple(tensors["vectors"].shape) == (9, DIMENSIONS)
    assert "ü" in text  # people can read it
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_an_empty_bank_is_an_archive_too(plain: Storage, other: Storage, tmp_path: Path) -> None:
    export(plain, tmp_path / "x")
    assert restore(other, tmp_path / "x").memories == 0


def test_nothing_is_overwritten(plain: Storage, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("mine")
    with pytest.raises(ArchiveError, match="exists already"):
        export(plain, path)
    with pytest.raises(ArchiveError, match="No such file"):
        export(plain, tmp_path / "no" / "x")
    assert path.read_text() == "mine"
    assert {each.name for each in tmp_path.iterdir()} <= {"x", "bank"}


def test_what_is_there_already_is_not_written_twice(
    plain: Storage, other: Storage, tmp_path: Path
) -> None:
    fill(plain)
    export(plain, tmp_path / "x")
    restore(other, tmp_path / "x")
    gone, kept = (each.id for each in other.list_memories(ANNA)[:2])
    other.set_recallable(ANNA, kept, False)
    other.delete(ANNA, [gone])
    before = len(list((tmp_path / "other" / "kv").rglob("*.safetensors")))
    counted = restore(other, tmp_path / "x")
    assert (counted.memories, counted.present) == (1, 4)
    assert other.get(ANNA, kept).recallable is False  # as it stands here
    files = len(list((tmp_path / "other" / "kv").rglob("*.safetensors")))
    assert files == before + 2
    assert other.get(ANNA, gone).text == plain.get(ANNA, gone).text


def test_collisions_are_refused_without_a_trace(
    plain: Storage, other: Storage, tmp_path: Path
) -> None:
    fill(plain)
    path, house = tmp_path / "x", plain.list_memories(ANNA)[-1]
    export(plain, path)
    cases = [
        (BEN, memory("the house is blue", id=house.id), "belongs to another owner"),
        (ANNA, memory("something else", id=house.id), "has another content"),
        (ANNA, memory("else", session="s", message_id="boat"), "under another id"),
        (
            ANNA,
            memory("one", "two", role="document", source="book", ordinal=0),
            "under another id",
        ),
    ]
    for owner, taken, said in cases:
        (stored,) = other.add(owner, [taken])
        before = snapshot(other, tmp_path / "other")
        with pytest.raises(ArchiveError, match=said):
            restore(other, path)
        assert snapshot(other, tmp_path / "other") == before
        other.delete(owner, [stored.id])
    assert restore(other, path).memories == 5


def test_an_item_with_another_value_is_not_overwritten(
    plain: Storage, other: Storage, tmp_path: Path
) -> None:
    fill(plain)
    export(plain, tmp_path / "x")
    restore(other, tmp_path / "x")
    plain.items.put(TENANT, NewItem(("all",), "free", {"v": 3}))
    export(plain, tmp_path / "y")
    with pytest.raises(ArchiveError, match="Another item is under 'free'"):
        restore(other, tmp_path / "y")
    kept = other.items.get(TENANT, ("all",), "free")
    assert kept is not None and kept.value == {"v": 2}


def test_another_model_or_embedder_is_refused_with_the_difference(
    plain: Storage, tmp_path: Path, clock: Clock
) -> None:
    fill(plain)
    export(plain, tmp_path / "x")
    others = [
        (
            Identity({**MODEL.parts, "tokenizer": "cccc"}),
            SPEC,
            EMBEDDER,
            "tokenizer: cccc here, bb",
        ),
        (MODEL, replace(SPEC, layers=(3, 7)), EMBEDDER, r"K/V: .*\[3, 7\].* here"),
        (MODEL, SPEC, Identity({"embedder": "b", "dim": "6"}), "embedder: b here, test in the"),
    ]
    for number, (encoding, spec, embedder, said) in enumerate(others):
        with Storage.open(tmp_path / f"other{number}", clock=clock) as storage:
            storage.claim(encoding, spec)
            storage.claim_retrieval(embedder)
            with pytest.raises(IncompatibleMemoryError, match=said) as caught:
                restore(storage, tmp_path / "x")
            assert "encode=True" in str(caught.value)
            assert storage.stats() == {}


def test_limits_hold_for_archives_too(plain: Storage, other: Storage, tmp_path: Path) -> None:
    fill(plain)
    export(plain, tmp_path / "x")
    with pytest.raises(ArchiveError, match="would have 4 memories, more than max_memories=3"):
        restore(other, tmp_path / "x", max_memories=3)
    with pytest.raises(ArchiveError, match="more than max_text_bytes=10"):
        restore(other, tmp_path / "x", max_text_bytes=10)
    assert other.stats() == {}
    assert restore(other, tmp_path / "x", max_memories=4, max_text_bytes=100).memories == 5
    again = restore(other, tmp_path / "x", max_memories=3)  # it adds none
    assert (again.memories, again.present) == (0, 5)


def test_what_is_forgotten_while_it_is_exported_is_left_out(
    bank: Storage, other: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_PART_KV", 1)  # a part for each memory
    fill(bank)
    victim, newer = bank.list_memories(ANNA)[2], bank.list_memories(ANNA)[1]
    supersede(bank, bank.list_memories(ANNA)[3].id, victim.id)
    assert newer.id != victim.id

    def forgetting(_: float) -> None:
        if victim.id in {each.id for each in bank.list_memories(ANNA)}:
            bank.delete(ANNA, [victim.id])

    manifest = bank.archives.export(
        tmp_path / "x", tenant=TENANT, dimensions=DIMENSIONS, progress=forgetting
    )
    assert (manifest.counts["memories"], manifest.counts["superseded"]) == (4, 0)
    assert manifest.counts["items"] == 1  # the bound one went with its memory
    assert victim.text.encode() not in (tmp_path / "x").read_bytes()
    restore(other, tmp_path / "x")
    assert_same(bank, other, ANNA)


def test_what_is_changed_while_it_is_exported_makes_it_begin_anew(
    plain: Storage, other: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_PART_KV", 1)
    fill(plain)
    victim, changes = plain.list_memories(ANNA)[1], iter(range(2))

    def changing(_: float) -> None:
        if (number := next(changes, None)) is not None:
            plain.replace(ANNA, victim.id, memory(f"changed {number}", session="s"))

    plain.archives.export(tmp_path / "x", tenant=TENANT, dimensions=DIMENSIONS, progress=changing)
    restore(other, tmp_path / "x")
    assert_same(plain, other, ANNA)
    with pytest.raises(StoreError, match="changed all the time"):
        plain.archives.export(
            tmp_path / "y",
            tenant=TENANT,
            dimensions=DIMENSIONS,
            progress=lambda _: bool(plain.replace(ANNA, victim.id, memory("again"))),
        )
    assert not (tmp_path / "y").exists()


def test_a_damaged_file_is_named_and_not_exported(folder_bank: Storage, tmp_path: Path) -> None:
    folder_bank.claim_retrieval(EMBEDDER)
    fill(folder_bank)
    victim = next((tmp_path / "bank" / "kv").rglob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(StoreError, match=f"{victim.name} is damaged"):
        export(folder_bank, tmp_path / "x")
    assert {each.name for each in tmp_path.iterdir()} == {"bank"}


def test_an_expired_memory_stays_expired(plain: Storage, other: Storage, tmp_path: Path) -> None:
    plain.add(ANNA, [memory("gone soon", expires_at=NOON + timedelta(seconds=1))])
    export(plain, tmp_path / "x")
    restore(other, tmp_path / "x")
    assert_same(plain, other, ANNA)


def test_a_bank_of_no_model_has_nothing_to_export(tmp_path: Path, clock: Clock) -> None:
    bank = Storage.open(tmp_path / "bank", clock=clock)
    with bank, pytest.raises(ConfigError, match="belongs to no model"):
        export(bank, tmp_path / "x")


def test_a_forged_archive_that_is_true_is_taken(
    plain: Storage, other: Storage, tmp_path: Path
) -> None:
    """What test_archive_hostile.py forges is refused for its one change only."""
    fill(plain)
    export(plain, tmp_path / "x")
    parts = parts_of(tmp_path / "x")
    change_lines(parts, LINES, lambda records: None)
    put_together(tmp_path / "y", parts)
    assert restore(other, tmp_path / "y").memories == 5


def test_what_an_older_memory_supersedes_is_restored(plain: Storage, other: Storage) -> None:
    def section(text: str, ordinal: int | None = None) -> NewMemory:
        return memory(text, role="document", source="menu.txt", ordinal=ordinal)

    (pie,) = plain.add(ANNA, [section("apple pie", 0)])
    tart, _ = plain.supersede(ANNA, pie.id, section("pear tart"))
    (cake,) = plain.add(ANNA, [section("plum cake", 1)])
    again, _ = plain.supersede(ANNA, cake.id, section("pear tart"))
    assert again.id == tart.id
    path = Path(plain._db.place) / "x"
    export(plain, path)
    assert restore(other, path).memories == 3
    assert_same(plain, other, ANNA)
