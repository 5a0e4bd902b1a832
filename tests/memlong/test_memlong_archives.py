"""Export and restore with a model: recalls are the same, and limits hold on every way in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bank_kinds import Kind

from memlong_agent import ArchiveError, ConfigError, IncompatibleMemoryError, MemLong
from memlong_agent.embedding import HashEmbedder
from memlong_agent.identity import Identity
from memlong_agent.layout import MemoryLayout
from memlong_agent.testing import tiny_checkpoint

Open = Callable[..., MemLong]


def told(memlong: MemLong) -> None:
    """A talk of two sessions, a note, a book, and another user's secret."""
    for session, text in (("a", "The key is red."), ("b", "The dog barks."), ("b", "The key?")):
        memlong.session(session, "alice").chat(text, max_tokens=4)
    memories = memlong.memories(user_id="alice")
    memories.add("The boat is blue.", metadata={"n": 1})
    memories.add("".join(f"Line {n} of the book.\n" for n in range(200)), source="book.txt")
    memlong.memories(session_id="bob").add("A secret.")
    memlong.items().put(("x",), "k", {"v": 1}, remember="The cat sleeps.", user_id="alice")


@pytest.mark.parametrize(
    ("kind", "other"),
    [("sqlite", "sqlite"), ("sqlite", "postgres"), ("postgres", "encrypted")],
    indirect=["kind"],
)
def test_a_restored_bank_recalls_the_same(
    open_memlong: Open, tmp_path: Path, other: str, request: pytest.FixtureRequest
) -> None:
    one = open_memlong()
    two = open_memlong(**Kind.of(other, tmp_path / "other", request).options)
    told(one)
    done = one.export(tmp_path / "x")
    assert (done.path, done.nbytes) == (str(tmp_path / "x"), (tmp_path / "x").stat().st_size)
    back = two.restore(tmp_path / "x")
    assert (back.memories, back.present, back.items) == (done.memories, 0, 1)
    for owner in ({"user_id": "alice"}, {"session_id": "bob"}):
        mine, its = one.memories(**owner), two.memories(**owner)
        assert mine.list() == its.list() != []
        for question in ("Where is the key?", "line 7 of the book", "secret cat"):
            assert mine.search(question, top_k=20) == its.search(question, top_k=20) != []
    assert two.items().get(("x",), "k").value == {"v": 1}  # type: ignore[union-attr]
    said = []
    for memlong in (one, two):  # the session goes on, and says the same
        reply = memlong.session("b", "alice").chat("What barks?", max_tokens=8, write=False)
        assert reply.recalled
        said.append((reply.text, reply.recalled, reply.prompt_ids))
    assert said[0] == said[1]
    assert two.doctor().problems == one.doctor().problems


def test_one_user_or_one_session(open_memlong: Open, tmp_path: Path) -> None:
    memlong = open_memlong()
    told(memlong)
    assert memlong.export(tmp_path / "bob", session_id="bob").memories == 1
    assert memlong.export(tmp_path / "nobody", user_id="nobody").memories == 0
    for wrong in ({"user_id": "a", "session_id": "b"}, {"user_id": ""}):
        with pytest.raises(ConfigError, match="Export whose memories"):
            memlong.export(tmp_path / "x", **wrong)


def test_token_ids_that_are_not_the_texts_are_refused(open_memlong: Open, tmp_path: Path) -> None:
    """What people read in a memory is what the model recalls."""
    memlong = open_memlong()
    memlong.memories(user_id="alice").add("The key is red.")
    memlong.export(tmp_path / "x")
    tokens = memlong.engine.tokenize
    memlong.engine.tokenize = lambda texts: [[1, *ids[1:]] for ids in tokens(texts)]  # type: ignore[method-assign]
    with (
        open_memlong(bank=":memory:") as other,
        pytest.raises(ArchiveError, match="token ids are not its text's"),
    ):
        other.engine.tokenize = memlong.engine.tokenize  # type: ignore[method-assign]
        other.restore(tmp_path / "x")


def test_an_archive_of_another_model_is_encoded_anew(open_memlong: Open, tmp_path: Path) -> None:
    one = open_memlong()
    told(one)
    one.export(tmp_path / "x")
    model = tiny_checkpoint(tmp_path / "m", layout=MemoryLayout.memlong(4), seed=5)
    two = open_memlong(model=model, bank=tmp_path / "other", embedder="lexical", chunk_tokens=64)
    with pytest.raises(IncompatibleMemoryError, match=r"weights up to.*encode=True"):
        two.restore(tmp_path / "x")
    assert two.stats() == {}
    back = two.restore(tmp_path / "x", encode=True)
    mine, its = (each.memories(user_id="alice").list() for each in (one, two))
    assert back.memories == len(mine) + 1
    assert [(each.id, each.text) for each in mine] == [(each.id, each.text) for each in its]
    assert two.doctor().problems == ()
    assert "barks" in two.memories(user_id="alice").search("dog barks")[0].text


def test_another_tenant_is_refused(open_memlong: Open, tmp_path: Path) -> None:
    told(one := open_memlong())
    one.export(tmp_path / "x")
    two = open_memlong(bank=tmp_path / "other", tenant="theirs")
    with pytest.raises(ArchiveError, match=r"tenant 'default'.*tenant='default'"):
        two.restore(tmp_path / "x")


def test_texts_above_the_limit_are_refused_on_every_way_in(open_memlong: Open) -> None:
    memlong = open_memlong(max_text_bytes=1024, max_document_bytes=4096)
    memories, session = memlong.memories(user_id="alice"), memlong.session("s", "alice")
    kept = memories.add("small")[0]
    long = "ü" * 600  # 1,200 bytes
    ways: list[Callable[[], object]] = [
        lambda: session.chat(long),
        lambda: session.stream(long),
        lambda: memlong.respond(
            [{"role": "user", "content": long}], session_id="s", user_id="alice", write=True
        ),
        lambda: memories.add(long),
        lambda: memories.add([{"role": "user", "content": long}]),
        lambda: memories.add("small", metadata={"x": long}),
        lambda: memories.add_turn("hello", long),
        lambda: memories.update(kept.id, long),
        lambda: memories.supersede(kept.id, long),
        lambda: memlong.items().put(("a",), "k", {"v": long}),
        lambda: memlong.items().put(("a",), "k", {"v": 1}, remember=long, user_id="alice"),
    ]
    for way in ways:
        with pytest.raises(ConfigError, match=r"bytes, more than max_text_bytes=1,024"):
            way()
    assert [each.text for each in memories.list()] == ["small"]
    with pytest.raises(ConfigError, match="more than max_document_bytes=4,096"):
        memories.add("word " * 1000, source="book")
    assert len(memories.list()) == 1
    assert memories.add("word " * 800, source="book")  # 4,000 bytes: a document may be longer


def test_a_stream_above_the_limit_keeps_what_was_read(open_memlong: Open) -> None:
    memories = open_memlong(max_document_bytes=20_000).memories(user_id="alice")
    with pytest.raises(ConfigError, match="stays remembered"):
        memories.add((f"Line {n} of a long stream.\n" for n in range(10_000)), source="s")
    assert all(each.role == "document" for each in memories.list())


def test_an_owner_holds_no_more_memories_than_allowed(open_memlong: Open, tmp_path: Path) -> None:
    memlong = open_memlong(max_memories=2)
    memories = memlong.memories(user_id="alice")
    first = memories.add("one", message_id="m")[0]
    memlong.session("s", "alice").chat("two", max_tokens=2)
    for way in (
        lambda: memories.add("three"),
        lambda: memlong.session("s", "alice").chat("three", max_tokens=2),
        lambda: memories.supersede(first.id, "three"),
        lambda: memlong.items().put(("a",), "k", {}, remember="three", user_id="alice"),
    ):
        with pytest.raises(ConfigError, match="3 memories, more than max_memories=2"):
            way()
    assert len(memories.list()) == 2
    memories.add("one, changed", message_id="m")  # replaces, adds none
    memories.update(first.id, "one again")
    memlong.memories(user_id="bob").add("another owner")
    memories.delete(first.id)
    memories.add("three")
    memlong.export(tmp_path / "x")
    other = open_memlong(bank=tmp_path / "other", max_memories=1)
    with pytest.raises(ArchiveError, match="max_memories=1"):
        other.restore(tmp_path / "x")
    assert other.stats() == {}


class Narrow(HashEmbedder):
    """Another embedder, of other dimensions."""

    identity = Identity({"embedder": "narrow"})
    dimensions = 96


def test_items_are_embedded_anew_by_the_embedder_of_the_new_bank(
    open_memlong: Open, tmp_path: Path
) -> None:
    one = open_memlong()
    for key, text in (("cat", "The cat sleeps."), ("dog", "A dog barks.")):
        one.items().put(("x",), key, {"text": text, "n": [1]}, texts=[text])
    one.items().put(("x",), "plain", {"text": "The cat."})
    one.export(tmp_path / "x")
    two = open_memlong(bank=tmp_path / "other", embedder=Narrow())
    assert two.restore(tmp_path / "x", encode=True).items == 3
    found = two.items().search(("x",), query="the cat sleeps")
    assert [item.key for item, _ in found] == ["cat", "dog", "plain"]
    assert found[0][1] == pytest.approx(1, abs=1e-3) and found[2][1] is None
