"""One process of the isolation test: four workers on a shared bank. Run as a script.

Every text says whose it is. Whatever a worker is given, by whatever way, must be its owner's.
Arguments: bank folder, number of this process, operations of each worker. Prints how many
operations were done and how many texts were looked at; a stranger's text ends it with an error.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from archive_eyes import read_archive
from memory_drafts import START, Scattered, draft, exchange, kv_of, open_bank

from memlong_agent.errors import ConfigError, MemoryNotFoundError, StoreLockedError
from memlong_agent.memory import MemoryBank
from memlong_agent.storage import Binding, NewItem, Owner

# Same names under two tenants and under both kinds.
OWNERS = [
    Owner(tenant, kind, name)  # type: ignore[arg-type]
    for tenant in ("acme", "globex")
    for kind in ("user", "session")
    for name in ("alice", "bob")
]
TOKENS = 16  # of every chunk
WORDS = ("boat", "parrot", "teapot", "harbour", "violin", "walnut")


drafted, exchanged = partial(draft, tokens=TOKENS), partial(exchange, tokens=TOKENS)


class Worker:
    def __init__(self, bank: MemoryBank, seed: int) -> None:
        self.bank, self.chance = bank, random.Random(seed)
        # Nobody acts for the keeper, whose one memory must outlive all the others' forgetting.
        self.keeper = Owner("acme", "user", f"keeper {seed}")
        self.kept = bank.add(self.keeper, [drafted(f"{mark(self.keeper)} {' '.join(WORDS)}")])
        self.done: Counter[str] = Counter()
        self.looked_at = 0

    def run(self, operations: int) -> None:
        names = [name for name in dir(self) if name.startswith("do_")]
        weights = [{"do_add": 6, "do_recall": 6}.get(name, 1) for name in names]
        for name in self.chance.choices(names, weights, k=operations):
            owner = self.chance.choice(OWNERS)
            with suppress(MemoryNotFoundError):  # another worker was quicker
                getattr(self, name)(owner, mark(owner))
                self.done[name] += 1
        self.do_export(owner, mark(owner))  # at least one of each worker
        if self.bank.list(self.keeper) != self.kept.memories:
            raise AssertionError(f"{self.keeper} has {self.bank.list(self.keeper)}")

    def mine(self, owner: Owner, texts: Sequence[str]) -> None:
        self.looked_at += len(texts)
        for text in texts:
            if mark(owner) not in text:
                raise AssertionError(f"{owner} was given {text!r}")

    def said(self, whose: str) -> str:
        return f"{whose} {self.chance.choice(WORDS)} {self.chance.randrange(10**6)}"

    def an_id(self, owner: Owner) -> str:
        found = self.bank.list(owner, limit=20)
        self.mine(owner, [each.text for each in found])
        if not found:
            raise MemoryNotFoundError("none yet")
        return self.chance.choice(found).id

    def do_add(self, owner: Owner, whose: str) -> None:
        said = exchanged(self.said(whose), f"{whose} noted.", session="s")
        written = self.bank.add(owner, [said])
        self.done["evicted"] += written.evicted
        self.mine(owner, [each.text for each in written.memories])

    def do_turn(self, owner: Owner, whose: str) -> None:
        turn = f"{whose} {self.chance.random()}"
        self.bank.add(owner, [drafted(self.said(whose), pending=turn)], turn=turn)
        self.bank.finish_turn(
            owner, turn, exchanged(self.said(whose), f"{whose} well.", session="s")
        )

    def do_recall(self, owner: Owner, whose: str) -> None:
        # Half of the questions name a stranger.
        asked = self.said(mark(self.chance.choice(OWNERS)))
        hits = self.bank.recall(owner, asked, top_k=8, scope="owner")
        self.mine(owner, [hit.chunk.text for hit in hits])
        for hit in hits:
            if not hit.kv.keys.equal(kv_of(hit.chunk.text, hit.chunk.tokens).keys):
                raise AssertionError(f"wrong K/V of {hit.chunk.text!r}")
        marks = [(hit.chunk.pk, hit.rank, hit.score, None) for hit in hits]
        self.bank.mark(owner, f"{whose} {self.chance.random()}", marks)

    def do_search(self, owner: Owner, whose: str) -> None:
        found = self.bank.search(owner, self.chance.choice(WORDS), top_k=50, session="s")
        self.mine(owner, [each.text for each in found])

    def do_tail(self, owner: Owner, whose: str) -> None:
        said = [m["content"] for turn in self.bank.tail(owner, "s", 5) for m in turn]
        self.mine(owner, said)

    def do_update(self, owner: Owner, whose: str) -> None:
        new = drafted(self.said(whose))
        self.mine(owner, [self.bank.update(owner, self.an_id(owner), new, purge=False).text])

    def do_delete(self, owner: Owner, whose: str) -> None:
        self.bank.delete(owner, [self.an_id(owner)], purge=False)

    def do_supersede(self, owner: Owner, whose: str) -> None:
        with suppress(ConfigError):  # it is superseded already
            new = self.bank.supersede(owner, self.an_id(owner), drafted(self.said(whose)))
            self.mine(owner, [new.text])

    def do_forget(self, owner: Owner, whose: str) -> None:
        """Everybody's texts hold these words, the keeper's all of them."""
        self.bank.forget(owner, self.chance.choice(WORDS), purge=False)

    def do_expire(self, owner: Owner, whose: str) -> None:
        gone = START - timedelta(days=1)
        self.bank.add(owner, [drafted(self.said(whose), expires_at=gone)])
        self.bank.expire()

    def do_steal(self, owner: Owner, whose: str) -> None:
        """A stranger's id is as good as none."""
        stranger = self.chance.choice([each for each in OWNERS if each != owner])
        theirs = self.an_id(stranger)
        for touch in (
            lambda: self.bank.get(owner, theirs),
            lambda: self.bank.delete(owner, [theirs], purge=False),
            lambda: self.bank.update(owner, theirs, drafted(self.said(whose)), purge=False),
            lambda: self.bank.supersede(owner, theirs, drafted(self.said(whose))),
        ):
            try:
                touch()
            except MemoryNotFoundError:
                continue
            raise AssertionError(f"{owner} reached a memory of {stranger}")

    def do_item(self, owner: Owner, whose: str) -> None:
        text, bound = self.said(whose), Binding(owner, self.an_id(owner))
        item = NewItem((owner.kind, owner.name), f"{self.chance.randrange(20)}", {"t": text},
                       bound=bound)  # fmt: skip
        self.bank.items.put(owner.tenant, item, [text])

    def do_find_items(self, owner: Owner, whose: str) -> None:
        found = self.bank.items.search(
            owner.tenant, (owner.kind, owner.name), query="boat", accept=None, limit=50, offset=0
        )
        self.mine(owner, [item.value["t"] for item, _ in found])

    def do_shared_item(self, owner: Owner, whose: str) -> None:
        """Everybody of a tenant writes under these keys; an item is the last writer's."""
        text, bound = self.said(whose), Binding(owner, self.an_id(owner))
        item = NewItem(("all",), f"{self.chance.randrange(20)}", {"t": text}, bound=bound)
        self.bank.items.put(owner.tenant, item, [text])

    def do_export(self, owner: Owner, whose: str) -> None:
        """An archive made while others write, looked at byte by byte, then taken in elsewhere."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "mine"
            with suppress(StoreLockedError):  # changed all the time
                self.bank.archives.export(path, owner.tenant, owner, None)
                self.archive(owner, path)
                self.taken_in(owner, path)

    def archive(self, owner: Owner, path: Path) -> None:
        data, found = path.read_bytes(), read_archive(path)
        for other in OWNERS:
            if other != owner and mark(other).encode() in data:
                raise AssertionError(f"{owner}'s archive holds {mark(other)!r}")
        self.mine(owner, [json.dumps(line) for line in found.lines if "superseded_by" not in line])
        ids = {line["id"] for line in found.memories}
        if not {line["memory_id"] for line in (*found.recalls, *found.superseded)} <= ids:
            raise AssertionError(f"{owner}'s archive names a memory that it does not hold")
        embedder = Scattered()
        for part in found.parts:
            text = part.line["text"]
            kv = kv_of(text, part.line["tokens"])
            self.same(part.vector, embedder.embed_query(text), text)
            self.same(part.kv, torch.cat([kv.keys.flatten(), kv.values.flatten()]), text)
        for line, vectors in found.items:
            self.same(vectors, embedder.embed_texts([line["value"]["t"]]), line["value"]["t"])

    def same(self, found: torch.Tensor | None, wanted: object, text: str) -> None:
        if found is None or not torch.allclose(found, torch.as_tensor(wanted), atol=1e-6):
            raise AssertionError(f"a wrong tensor lies beside {text!r}")

    def taken_in(self, owner: Owner, path: Path) -> None:
        with open_bank(embedder=Scattered(), index_backend="torch") as other:
            other.archives.restore(
                path,
                owner.tenant,
                tokenize=lambda texts: [list(range(TOKENS)) for _ in texts],
                encode=None,
                progress=None,
            )
            if set(other.stats()) - {owner}:
                raise AssertionError(f"{owner}'s archive brought {set(other.stats())}")
            self.mine(owner, [each.text for each in other.list(owner)])
            hits = other.recall(owner, self.said(mark(OWNERS[0])), top_k=50)
            self.mine(owner, [hit.chunk.text for hit in hits])


def mark(owner: Owner) -> str:
    return f"<{owner.tenant} {owner.kind} {owner.name}>"


def main(folder: str, number: int, operations: int) -> None:
    # Eviction all the time: 16 exchanges fit.
    with open_bank(
        folder, embedder=Scattered(), capacity_tokens=256, index_backend="torch"
    ) as bank:
        workers = [Worker(bank, 4 * number + i) for i in range(4)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda worker: worker.run(operations), workers))
    done = sum((worker.done for worker in workers), Counter[str]())
    looked_at = sum(worker.looked_at for worker in workers)
    sys.stdout.write(json.dumps({"done": done, "looked_at": looked_at}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
