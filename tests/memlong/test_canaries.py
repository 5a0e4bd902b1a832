"""What is forgotten is gone: from the answers, the live windows, and every byte of the bank.

A bank that held canaries and forgot them is compared with a twin that never saw them. Here with few
canaries; MEMLONG_TESTS=full takes 100, and 1,000 generations.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from postgres_server import PostgresServer

from memlong_agent import Forgotten, MemLong, MemoryNotFoundError
from memlong_agent.storage import Owner

Open = Callable[..., MemLong]
FULL = os.environ.get("MEMLONG_TESTS") == "full"
CANARIES, KEPT = (100, 40) if FULL else (12, 8)
GENERATIONS = 1000 if FULL else 40
ALICE = Owner("default", "user", "alice")
SHORT = {"max_tokens": 4}
ROOT = Path(__file__).resolve().parents[2]
# A session in a process of its own; it forgets nothing itself.
SESSION = """
import json, sys
from memlong_agent import MemLong
with MemLong(sys.argv[1], sys.argv[2], embedder="hash") as ml:
    session = ml.session("s", user_id="alice")
    for line in sys.stdin:
        reply = session.chat(json.loads(line), max_tokens=4)
        prompt = ml.engine.tokenizer.decode(list(reply.prompt_ids))
        found = {"prompt": prompt, "ids": reply.memory_ids, "recalls": len(reply.recalled)}
        print(json.dumps(found), flush=True)
"""


def noon() -> datetime:
    """A clock that stands: headers, and with them K/V, are the same in both banks."""
    return datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def name(number: int) -> str:
    return f"Zq{hashlib.sha256(str(number).encode()).hexdigest()[:10]}"


def canary(number: int) -> str:
    return f"The vault of {name(number)} opens at noon, she said, and {name(number)} has the key."


def harmless(number: int) -> str:
    return f"The boat number {number} lies in the harbor of town {number % 7} and is painted green."


def remember(ml: MemLong, text: str) -> None:
    """A memory under an id that follows from its text, so that both banks give it the same."""
    memories, bank = ml.memories(user_id="alice", session_id="s"), ml.engine.bank
    draft = memories._spoken([("user", text)], None, {})
    (new,) = bank._embedded([draft])
    memory_id = hashlib.md5(text.encode()).hexdigest()
    bank._storage.add(ALICE, [replace(new, id=memory_id)])


def fill(ml: MemLong, *, canaries: bool) -> None:
    for number in range(max(CANARIES, KEPT)):
        if number < KEPT:
            remember(ml, harmless(number))
        if canaries and number < CANARIES:
            tell(ml, number)


def tell(ml: MemLong, number: int) -> None:
    """A canary in one of the ways that memories come about, and recalled before it goes."""
    memories, text = ml.memories(user_id="alice", session_id="c"), canary(number)
    if number % 4 == 0:
        remember(ml, text)
    elif number % 4 == 1:
        memories.add(text + "\n\nMore of it.", source=f"{name(number)}.txt")
    elif number % 4 == 2:
        memories.add("Something.", metadata={"of": [name(number)]})
    else:
        (said,) = ml.session("c", user_id="alice").chat(text, **SHORT).memory_ids
        memories.update(said, text.upper())
    ml.session("d", user_id="alice").chat(f"What of {name(number)}?", **SHORT)


def contents(folder: Path, server: PostgresServer | None = None) -> bytes:
    """Every byte of a folder, and of all that a server keeps but its write-ahead log."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    if server is not None:
        server.checkpoint()
        kept = sorted(server.folder.rglob("*"))
        found += [path for path in kept if path.is_file() and "pg_wal" not in path.parts]
    return b"\0".join(path.read_bytes() for path in found)


def kv_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


def traces(ml: MemLong) -> dict[str, list[bytes]]:
    """Bytes that only canaries have: runs of six token ids, vectors, K/V."""
    found: dict[bool, dict[str, set[bytes]]] = {
        gone: {"token ids": set(), "vectors": set(), "K/V": set()} for gone in (True, False)
    }
    storage = ml.engine.bank._storage
    for memory in storage.list_memories(ALICE):
        mine = found["zq" in repr(memory).lower()]
        for chunk in storage.chunks(ALICE, memory.chunk_pks):
            ids = np.asarray(chunk.token_ids, "<u4")
            mine["token ids"] |= {ids[at : at + 6].tobytes() for at in range(ids.size - 5)}
            vector = storage.vectors_of(ALICE, [chunk.pk])[1][0]
            parts = [part for part in np.array_split(vector, 8) if np.count_nonzero(part) > 2]
            mine["vectors"] |= {part.tobytes() for part in parts}
            (kv,) = storage.read_kv([chunk.pk])
            mine["K/V"].add(kv.keys[0, 0, -1].contiguous().numpy().tobytes())
    return {what: sorted(each - found[False][what]) for what, each in found[True].items()}


Twins = tuple[MemLong, MemLong, Callable[[], bytes]]


@pytest.fixture(params=["random", "memlong-tiny", "random on postgres"])
def twins(request: pytest.FixtureRequest, open_memlong: Open, tmp_path: Path) -> Twins:
    """A bank that holds canaries among other memories, one that never saw them, and what reads all
    bytes of the first."""
    options: dict[str, Any] = {"clock": noon, "dtype": torch.float32}
    server: PostgresServer | None = None
    if request.param == "memlong-tiny":
        options["model"] = None
    if request.param == "random on postgres":
        server = request.getfixturevalue("own_postgres")  # others' texts may hold the same tokens
    both = [
        open_memlong(bank=tmp_path / name, database=server and server.url(), **options)
        for name in ("one", "twin")
    ]
    fill(both[0], canaries=True)
    fill(both[1], canaries=False)
    return both[0], both[1], lambda: contents(tmp_path / "one", server)


def test_canaries_leave_no_trace(twins: Twins, tmp_path: Path) -> None:
    ml, twin, bytes_now = twins
    marks = traces(ml)
    before, kept = bytes_now(), kv_files(tmp_path / "one")
    for what, each in marks.items():
        assert each and all(mark in before for mark in each), what
    memories = ml.memories(user_id="alice")
    for number in range(CANARIES):
        assert memories.forget(text=name(number).lower()).memories >= 2  # and the question about it
    assert {memory.text for memory in memories.list()} == {harmless(n) for n in range(KEPT)}
    compare(ml, twin)
    for _ in range(2):  # with the bank open, its log beside it; and closed
        after = bytes_now()
        for number in range(CANARIES):
            for form in (name(number), name(number).lower(), name(number).upper()):
                assert form.encode() not in after
        for what, each in marks.items():
            assert [mark for mark in each if mark in after] == [], what
        assert harmless(0).encode() in after
        left = kv_files(tmp_path / "one")
        assert left.items() <= kept.items() and len(left) == KEPT
        ml.close()


def compare(ml: MemLong, twin: MemLong) -> None:
    """Same ids and ranks, K/V within 1e-5, logits within 1e-4; and no canary is recalled."""
    questions = [f"Where is the boat number {n}?" for n in range(KEPT)] + ["Is it green?"]
    questions += [f"What of {name(n)} and the vault?" for n in range(CANARIES)]
    for question in questions:
        mine, theirs = (
            [(r.memory_id, r.chunk, r.text, round(r.score, 5)) for r in m.search(question)]
            for m in (each.memories(user_id="alice") for each in (ml, twin))
        )
        assert mine == theirs and "Zq" not in str(mine)
    logits = []
    for each in (ml, twin):
        engine = each.engine
        ids = torch.tensor(engine.tokenize(["Where is the boat number 3?"]))
        hits = engine.bank.recall(ALICE, "Where is the boat number 3?", top_k=8)
        memory = engine.model.recall([hit.kv for hit in hits], engine.placement)
        with torch.no_grad():
            start = engine.placement.start
            logits.append((hits, engine.model.forward(ids, start, memory=memory, last_only=True)))
    assert len(logits[0][0]) > 1
    for one, other in zip(logits[0][0], logits[1][0], strict=True):
        assert one.chunk.text == other.chunk.text and one.rank == other.rank
        torch.testing.assert_close(one.kv.keys, other.kv.keys, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.kv.values, other.kv.values, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[0][1], logits[1][1], atol=1e-4, rtol=0)


def dump(folder: Path) -> dict[str, list[Any]]:
    """Every row but counters and the recall log, and every K/V file."""
    with sqlite3.connect(folder / "bank.sqlite") as conn:
        names = conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        found: dict[str, list[Any]] = {}
        for (table,) in names:
            columns = [row[1] for row in conn.execute(f"PRAGMA table_info({table})")]
            columns = [each for each in columns if each not in ("counter", "last_recalled_at")]
            rows = f"SELECT {', '.join(columns)} FROM {table}"
            found[table] = sorted(conn.execute(rows).fetchall(), key=repr)
        found["sqlite_sequence"] = [r for r in found["sqlite_sequence"] if r[0] != "recalls"]
        found["files"] = sorted(kv_files(folder).items())
        assert found.pop("recalls") is not None
    conn.close()
    return found


def test_generating_without_writing_leaves_the_bank_as_it_was(
    open_memlong: Open, tmp_path: Path
) -> None:
    ml = open_memlong(clock=noon)
    fill(ml, canaries=True)
    before = dump(tmp_path / "bank")
    for number in range(GENERATIONS):
        user = "alice" if number % 4 else f"stranger {number}"
        session = ml.session(f"s{number % 5}", user_id=user)
        reply = session.chat(canary(number % CANARIES), write=False, max_tokens=2)
        assert bool(reply.recalled) is (user == "alice") and reply.memory_ids == ()
    asked = [{"role": "user", "content": canary(1)}]
    list(ml.respond(asked, user_id="alice", session_id="s", **SHORT))
    assert dump(tmp_path / "bank") == before
    ml.close()
    assert dump(tmp_path / "bank") == before


def test_another_process_drops_its_live_window(
    open_memlong: Open, model_folder: Path, tmp_path: Path
) -> None:
    ml = open_memlong()
    with subprocess.Popen(
        [sys.executable, "-c", SESSION, str(model_folder), str(tmp_path / "bank")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None and other.stdout is not None

        def chat(text: str) -> dict[str, Any]:
            print(json.dumps(text), file=other.stdin, flush=True)
            answer: dict[str, Any] = json.loads(other.stdout.readline())
            return answer

        memories = ml.memories(user_id="alice")
        chat("The canary is called Zyx.")
        (second,) = chat("The parrot is called Vuk.")["ids"]
        assert "Zyx" in chat("I like tea.")["prompt"]
        assert memories.forget(text="zyx").memories == 1
        seen = chat("And?")
        assert "Zyx" not in seen["prompt"] and "Vuk" in seen["prompt"]
        memories.update(second, "The raven is called Odo.")
        seen = chat("And now?")
        assert "Vuk" not in seen["prompt"] and "I like tea" in seen["prompt"]
        memories.erase()
        assert "tea" not in chat("Well?")["prompt"]
        other.stdin.close()


def test_mentions_lead_to_all_that_repeats_it(open_memlong: Open) -> None:
    ml = open_memlong()
    memories = ml.memories(user_id="alice")
    (told,) = memories.add("My dog is called Rex.")
    asked = ml.session("a", user_id="alice").chat("What is my dog called?", **SHORT)
    assert [recall.memory_id for recall in asked.recalled] == [told.id]
    ml.session("b", user_id="alice").chat("My dog called?", write=False, **SHORT)
    changed = memories.update(told.id, "My dog is called Bello.")
    assert changed.mentions == asked.memory_ids
    newer = memories.supersede(told.id, "My dog is called Ida.")
    assert newer.mentions == asked.memory_ids and memories.get(told.id).superseded_by == newer.id
    texts = [recall.text for recall in memories.search("dog called", top_k=9)]
    assert newer.text in texts and changed.text not in texts
    assert memories.delete(newer.id) == Forgotten(memories=1)
    assert "Bello" in str(memories.search("dog called"))
    gone = memories.delete(told.id)
    assert gone == Forgotten(memories=1, mentions=asked.memory_ids)
    assert memories.delete(gone.mentions).memories == 1 and memories.list() == []


def test_an_update_keeps_what_a_memory_is_known_by(open_memlong: Open) -> None:
    ml = open_memlong()
    memories = ml.memories(user_id="alice", session_id="monday")
    (told,) = memories.add("Tea at five.", message_id="m", metadata={"k": 1})
    changed = ml.memories(user_id="alice").update(told.id, "Tea at six.")
    assert (changed.session_id, changed.metadata) == ("monday", {"k": 1})
    (again,) = memories.add("Tea at seven.", message_id="m")
    assert again.id == told.id
    with pytest.raises(MemoryNotFoundError):
        memories.supersede("0" * 32, "x")


def test_purging_can_be_put_off(open_memlong: Open, tmp_path: Path) -> None:
    ml = open_memlong()
    memories = ml.memories(user_id="alice")
    memories.add("The canary is called Zyxomat.")
    memories.forget(text="Zyxomat", purge=False)
    assert b"zyxomat" in contents(tmp_path / "bank").lower()
    assert ml.doctor().healthy  # which purges first
    assert b"zyxomat" not in contents(tmp_path / "bank").lower()
    memories.add("The canary is called Zyxomat.")
    memories.clear(purge=False)
    ml.purge()
    assert b"zyxomat" not in contents(tmp_path / "bank").lower()
