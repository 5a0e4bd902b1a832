"""Writes the bank of this release, with the random model that wrote it, for later builds to open.

    python tests/old_banks/make_bank.py            # into tests/assets/banks/<version>

Run once for every release that is published, by the code of that release, and commit the folder:
`bank/`, `model/` and `expected.json`, which holds what was in the bank and what it recalled when it
was new. test_old_banks.py opens a copy of each. All texts are invented.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
import xxhash
from sqlalchemy import text as sql

import memlong_agent
from memlong_agent import MemLong
from memlong_agent.kv import KVChunk
from memlong_agent.layout import MemoryLayout
from memlong_agent.storage import Owner
from memlong_agent.testing import preferring, tiny_checkpoint

BANKS = Path(__file__).parents[1] / "assets" / "banks"
START = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
NOW = START + timedelta(days=2)
"""When later builds look: what expires has expired by then."""
SETTINGS = {"chunk_tokens": 96, "top_k": 4, "window_tokens": 512}
OWNERS = (
    ("default", "user", "alice"),
    ("default", "user", "bob"),
    ("default", "user", "carol"),
    ("default", "session", "kiosk"),
    ("office", "user", "alice"),
)
SPOKEN = (
    (
        "alice",
        "monday",
        "My parrot Zimbo sleeps in the green kettle.",
        "Noted: in the kettle.",
    ),
    ("alice", "monday", "The code of the bicycle shed is 4817.", "Noted: the code is 4817."),
    ("alice", "friday", "Where does my parrot sleep?", "In the green kettle."),
    ("bob", "garden", "I planted eleven quince trees behind the mill.", "Noted: eleven quinces."),
    ("bob", "garden", "Für Ülkü: 榲桲树 mögen keinen Frost. 🍐", "Noted."),
    ("bob", "shed", "How many quince trees are behind the mill?", "Eleven quince trees."),
    ("alice", "sunday", "When do ships lie in the harbour of Tarn?", "From October on."),
    (None, "kiosk", "The kiosk by the lighthouse closes at nine.", "Noted: it closes at nine."),
)
HARBOUR = """The harbour of Tarn is called Velmor. Ships lie there from October until the ice goes.

The pilot's house has seven windows, one for every lantern of the old fleet. On the longest night \
all of them are lit, and the children carry bread to the keepers.

In 1704 the mole was raised by two ells. The stones came from Ostrel, by sled, over the frozen bay.
"""
TIDES = "High water at Velmor is eleven minutes after Ostrel. Spring tides reach the third step.\n"
QUESTIONS = (
    ("default", "user", "alice", "Where does the parrot sleep?"),
    ("default", "user", "alice", "code of the bicycle shed"),
    ("default", "user", "alice", "When do the ships lie in the harbour of Velmor?"),
    ("default", "user", "alice", "Which stones did the mole get?"),
    ("default", "user", "bob", "How many quince trees are behind the mill?"),
    ("default", "user", "bob", "榲桲"),
    ("default", "user", "carol", "What did the carpenter paint?"),
    ("default", "session", "kiosk", "When does the kiosk close?"),
    ("office", "user", "alice", "Who has the key of the archive?"),
)


class Ticking:
    """A clock that moves a minute forward whenever it is read."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now


def make(folder: Path) -> None:
    """Write model, bank and `expected.json` into a new folder."""
    layout = MemoryLayout.memlong(4)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 1}
    tiny_checkpoint(folder / "model", layout=layout, dtype=torch.bfloat16, **shape)
    clock = Ticking()
    with opened(folder, clock) as ml:
        read_documents(ml)
        converse(ml)
        keep_items(ml)
        hide_some(ml)
    with opened(folder, clock, capacity_tokens=256) as ml:  # partly evicted
        for colour in ("blue", "amber", "white", "crimson"):
            ml.memories(user_id="carol", session_id="workshop").add(
                f"The carpenter painted the {colour} boat. " + "It dried in the sun. " * 5
            )
    with opened(folder, clock, tenant="office") as ml:
        ml.memories(user_id="alice", session_id="desk").add("Mrs Ombrel has the archive key.")
    with opened(folder, lambda: NOW) as ml:
        record = seen(ml, OWNERS, QUESTIONS)
    (folder / "bank" / "bank.lock").unlink()
    head = {"version": memlong_agent.__version__, "now": NOW.isoformat(), "settings": SETTINGS}
    written = {**head, "owners": OWNERS, "questions": QUESTIONS, **record}
    text = json.dumps(written, indent=1, ensure_ascii=False)
    (folder / "expected.json").write_text(text + "\n")


@contextmanager
def opened(folder: Path, clock: Any, **options: Any) -> Iterator[MemLong]:
    model, bank = folder / "model", folder / "bank"
    chosen = {**SETTINGS, "device": "cpu", "embedder": "hash", **options}
    with MemLong(model, bank, clock=clock, **chosen) as ml:
        yield ml


def converse(ml: MemLong) -> None:
    """Exchanges with real recalls and counters, and one that was told elsewhere."""
    for user, session, said, reply in SPOKEN:
        with preferring(ml, reply):
            ml.session(session, user_id=user).chat(said, max_tokens=48)
    monday = ml.memories(user_id="alice", session_id="monday")
    monday.add_turn("I left the map at Rhona's.", "Noted: the map.", message_id="m-17")
    monday.add("The tram is late today.", expires_at=START + timedelta(days=1))
    monday.add("I like rye bread.", metadata={"mood": "glad", "seen": [1, 2.5, None]})


def read_documents(ml: MemLong) -> None:
    alice = ml.memories(user_id="alice", session_id="reading")
    alice.add(HARBOUR * 4, source="books/harbour.txt", metadata={"shelf": 3})
    alice.add(iter([TIDES]), expires_at=NOW + timedelta(days=3650))


def keep_items(ml: MemLong) -> None:
    items = ml.items()
    items.put(("profile", "alice"), "tea", {"drink": "nettle tea"}, texts=["nettle tea"],
              remember="I drink nettle tea.", user_id="alice")  # fmt: skip
    items.put(("profile", "bob"), "cap", {"size": 58})
    items.put(("cache",), "weather", {"sky": "grey"}, ttl_s=3600.0)


def hide_some(ml: MemLong) -> None:
    """One withheld memory and one superseded."""
    alice = ml.memories(user_id="alice", session_id="friday")
    (secret,) = alice.add("The attic door squeaks at midnight.")
    (old,) = alice.add("My parrot eats almonds.")
    (new,) = alice.add("My parrot eats walnuts now.")
    storage = ml.engine.bank._storage
    storage.set_recallable(Owner("default", "user", "alice"), secret.id, False)
    pk = "(SELECT pk FROM memories WHERE id = :{})"
    hide = f"UPDATE memories SET superseded_by = {pk.format('new')} WHERE id = :old"
    with storage._db.scope(write=True) as conn:
        conn.execute(sql(hide), {"new": new.id, "old": old.id})


def seen(ml: MemLong, owners: Any, questions: Any) -> dict[str, Any]:
    """All that a bank holds and answers, as JSON; equal for every build that reads it well."""
    memories = {"/".join(owner): held(ml, Owner(*owner)) for owner in owners}
    recalls = []
    for *owner, question in questions:
        found = ml.engine.bank.search(Owner(*owner), question, top_k=4)
        recalls.append([[r.memory_id, r.chunk, r.text, round(r.score, 4)] for r in found])
    items = [[list(i.namespace), i.key, i.value] for i, _ in ml.items().search(limit=100)]
    return {"memories": memories, "recalls": recalls, "items": sorted(items, key=str)}


def held(ml: MemLong, owner: Owner) -> list[dict[str, Any]]:
    """An owner's memories in the order of time, with digests of their K/V."""
    storage = ml.engine.bank._storage
    return [
        {
            "id": memory.id,
            "role": memory.role,
            "text": memory.text,
            "session": memory.session,
            "messages": memory.messages,
            "source": memory.source,
            "ordinal": memory.ordinal,
            "metadata": memory.metadata,
            "message_id": memory.message_id,
            "created_at": memory.created_at.isoformat(),
            "expires_at": memory.expires_at and memory.expires_at.isoformat(),
            "superseded_by": memory.superseded_by,
            "recallable": memory.recallable,
            "chunks": [
                [c.header, c.text, c.counter, len(c.token_ids), digest(kv)]
                for c, kv in zip(
                    storage.chunks(owner, memory.chunk_pks),
                    storage.read_kv(memory.chunk_pks),
                    strict=True,
                )
            ],
        }
        for memory in storage.list_memories(owner, newest_first=False)
    ]


def digest(kv: KVChunk) -> str:
    """xxh3-64 over the bytes of keys and values."""
    both = torch.stack([kv.keys, kv.values]).contiguous().flatten().view(torch.uint8)
    return xxhash.xxh3_64_hexdigest(both.numpy().tobytes())


if __name__ == "__main__":
    target = BANKS / memlong_agent.__version__
    if target.exists():
        sys.exit(f"{target} is there already: a released bank is never written again.")
    make(target)
