"""One process of the adapters' isolation test: four workers on one bank. Run as a script.

Every text says whose it is. Whatever comes back, by whatever door, must be its owner's: replies'
recalls and citations, prompts of resumed sessions, documents, items, texts of memory blocks, lists,
archives. Arguments: model folder, bank folder, number of this process, operations of each worker.
Prints how many operations were done, how many texts were looked at and how many chunks its turns
evicted; a stranger's text ends it with an error.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from archive_eyes import read_archive
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_memlong import (
    ChatMemLong,
    MemLongLLM,
    MemLongMiddleware,
    MemLongRetriever,
    MemLongStore,
)
from llama_index.core.llms import ChatMessage
from llama_index.llms.memlong import MemLongLLM as LlamaMemLong
from llama_index.llms.memlong import MemLongMemoryBlock

from memlong_agent import ConfigError, MemLong, MemoryNotFoundError, StoreLockedError

WORDS = ("boat", "parrot", "teapot", "harbour", "violin", "walnut")
SESSIONS = ("one", "two")
# Eviction all the time: a handful of exchanges fit.
OPTIONS: dict[str, Any] = {"embedder": "hash", "capacity_tokens": 256, "top_k": 4}
PLAIN: dict[str, Any] = {"max_tokens": 1}


@dataclass(frozen=True, slots=True)
class Owner:
    """Same names under two tenants; without a user the memory is the session's."""

    tenant: str
    user: str | None
    session: str | None = None

    @property
    def mark(self) -> str:
        return f"<{self.tenant} {self.user or self.session}>"

    @property
    def named(self) -> dict[str, str]:
        return {"user_id": self.user} if self.user else {"session_id": self.session or ""}


OWNERS = [
    owner
    for tenant in ("acme", "globex")
    for owner in (Owner(tenant, "alice"), Owner(tenant, "bob"), Owner(tenant, None, "alone"))
]


class Recalled(BaseCallbackHandler):
    """What a completion recalled: LangChain hands that to callbacks only."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        info = response.generations[0][0].generation_info or {}
        self.texts += [each["text"] for each in info["memlong"]["recalls"]]


class Doors:
    """Every way into the bank that a tenant has in this process."""

    def __init__(self, model: str, bank: str, tenant: str) -> None:
        options = {**OPTIONS, "tenant": tenant}
        place: dict[str, Any] = {"model": model, "bank": bank, "options": options}
        self.chat = ChatMemLong(**place, **PLAIN)
        self.completion = MemLongLLM(**place, **PLAIN)
        self.retriever = MemLongRetriever(**place, k=20)
        self.store = MemLongStore(bank, model=model, options=options)
        self.agent = create_agent(self.chat, [], middleware=[MemLongMiddleware(self.chat)])
        self.llama = LlamaMemLong(**place, **PLAIN)
        self.block = MemLongMemoryBlock(**place)
        self.place, self.ml = place, self.chat.memlong()


class Worker:
    def __init__(self, doors: dict[str, Doors], seed: int) -> None:
        self.all, self.chance = doors, random.Random(seed)
        self.done: Counter[str] = Counter()
        self.looked_at = self.evicted = 0

    def run(self, operations: int) -> None:
        names = [name for name in dir(self) if name.startswith("do_")]
        weights = [{"do_export": 1}.get(name, 3) for name in names]
        for name in [*self.chance.choices(names, weights, k=operations - 1), "do_export"]:
            owner = self.chance.choice(OWNERS)
            self.doors, self.memories = self.all[owner.tenant], self.memories_of(owner)
            with suppress(MemoryNotFoundError, StoreLockedError):  # another was quicker
                getattr(self, name)(owner)
                self.done[name] += 1

    def memories_of(self, owner: Owner) -> Any:
        return self.all[owner.tenant].ml.memories(**owner.named)

    def mine(self, owner: Owner, texts: Iterable[str]) -> None:
        for text in texts:
            self.looked_at += 1
            self.nobody_elses(owner, text)
            if owner.mark not in text:
                raise AssertionError(f"{owner} was given {text!r}, which is nobody's")

    def nobody_elses(self, owner: Owner, text: str) -> None:
        if strangers := [each for each in OWNERS if each != owner and each.mark in text]:
            raise AssertionError(f"{owner} was given {text!r} of {strangers}")

    def says(self, owner: Owner) -> str:
        return f"{owner.mark} {self.chance.choice(WORDS)} {self.chance.randrange(10**4)}"

    def stranger(self, owner: Owner) -> Owner:
        return self.chance.choice([each for each in OWNERS if each != owner])

    def session(self, owner: Owner) -> str:
        return owner.session or self.chance.choice(SESSIONS)

    def config(self, owner: Owner) -> dict[str, Any]:
        ids = {"session_id": self.session(owner)}
        return {"configurable": {**ids, **({"user_id": owner.user} if owner.user else {})}}

    def an_id(self, owner: Owner) -> str:
        found = self.memories_of(owner).list(limit=20)
        self.mine(owner, [each.text for each in found])
        if not found:
            raise MemoryNotFoundError("none yet")
        return str(self.chance.choice(found).id)

    def replied(self, owner: Owner, told: dict[str, Any]) -> None:
        """What a reply's metadata says of the memory."""
        self.mine(owner, [recall["text"] for recall in told["recalls"]])
        self.nobody_elses(owner, json.dumps(told["recalls"]))
        self.evicted += told.get("usage", told).get("evicted", 0)
        sessions = {recall["session_id"] for recall in told["recalls"]}
        if not sessions <= {*SESSIONS, owner.session, None}:
            raise AssertionError(f"{owner} recalled from {sessions}")
        for memory_id in told["memory_ids"]:
            with suppress(MemoryNotFoundError):  # evicted or forgotten by now
                self.mine(owner, [self.memories.get(memory_id).text])

    def do_langchain_chat(self, owner: Owner) -> None:
        said = self.doors.chat.invoke(self.says(owner), self.config(owner))
        self.replied(owner, said.response_metadata["memlong"])

    def do_langchain_achat(self, owner: Owner) -> None:
        said = asyncio.run(self.doors.chat.ainvoke(self.says(owner), self.config(owner)))
        self.replied(owner, said.response_metadata["memlong"])

    def do_langchain_stranger_named(self, owner: Owner) -> None:
        asked = self.says(self.stranger(owner))
        pieces = list(self.doors.chat.stream(asked, self.config(owner), write="off"))
        self.replied(owner, pieces[-1].response_metadata["memlong"])

    def do_langchain_completion(self, owner: Owner) -> None:
        seen = Recalled()
        config = {**self.config(owner), "callbacks": [seen]}
        list(self.doors.completion.stream(self.says(owner), config))
        self.mine(owner, seen.texts)

    def do_langchain_retriever(self, owner: Owner) -> None:
        asked = self.says(self.stranger(owner))
        found = self.doors.retriever.invoke(asked, self.config(owner))
        self.mine(owner, [each.page_content for each in found])
        for each in found:
            self.nobody_elses(owner, json.dumps(each.metadata))

    def do_langchain_agent(self, owner: Owner) -> None:
        asked = {"messages": [("user", self.says(owner))]}
        said = self.doors.agent.invoke(asked, self.config(owner))["messages"]
        self.nobody_elses(owner, "".join(each.text for each in said))
        self.mine(owner, [r["text"] for r in said[-1].response_metadata["memlong"]["recalls"]])

    def do_langchain_store(self, owner: Owner) -> None:
        place = ("memories", owner.user or "nobody")
        key = str(self.chance.randrange(6))
        value = {"text": self.says(owner) if owner.user else "nobody's"}
        self.doors.store.put(place, key, value)
        found = self.doors.store.search(place, query=self.says(self.stranger(owner)), limit=50)
        if owner.user:
            self.mine(owner, [each.value["text"] for each in found])
        tenants = {each.tenant for each in OWNERS} - {owner.tenant}
        texts = [str(each.value) for each in self.doors.store.search((), limit=100)]
        if any(f"<{tenant} " in text for tenant in tenants for text in texts):
            raise AssertionError(f"{owner.tenant} sees {texts}")
        self.looked_at += len(texts)

    def do_llama_chat(self, owner: Owner) -> None:
        llm = self.doors.llama.with_session(self.session(owner), owner.user)
        said = llm.chat([ChatMessage(role="user", content=self.says(owner))])
        self.replied(owner, said.raw["memlong"])
        cited = [block for block in said.message.blocks if block.block_type == "citation"]
        self.mine(owner, [block.cited_content.text for block in cited])

    def do_llama_completion(self, owner: Owner) -> None:
        llm = self.doors.llama.with_session(self.session(owner), owner.user)
        said = asyncio.run(llm.acomplete(self.says(self.stranger(owner))))
        self.replied(owner, said.raw["memlong"])

    def do_llama_block(self, owner: Owner) -> None:
        block = MemLongMemoryBlock(**self.doors.place, user_id=owner.user)
        session, told = self.session(owner), self.says(owner)
        turn = [ChatMessage(role="user", content=told), ChatMessage(role="assistant", content="ok")]
        asyncio.run(block.aput(turn, from_short_term_memory=True, session_id=session))
        asked = [ChatMessage(role="user", content=self.says(self.stranger(owner)))]
        text = asyncio.run(block.aget(asked, session_id=session))
        lines = [line for line in text.split("\n") if line.startswith("[20")]
        self.nobody_elses(owner, text)
        self.mine(owner, lines)

    def do_session(self, owner: Owner) -> None:
        session = self.doors.ml.session(self.session(owner), owner.user)
        reply = session.chat(self.says(owner), **PLAIN)
        recalls = [each.model_dump(mode="json") for each in reply.recalled]
        self.replied(owner, {"recalls": recalls, "memory_ids": reply.memory_ids})
        self.nobody_elses(owner, self.doors.ml.engine.tokenizer.decode(list(reply.prompt_ids)))

    def do_add(self, owner: Owner) -> None:
        self.mine(owner, [each.text for each in self.memories.add(self.says(owner))])
        source, extra = self.says(owner), {"k": self.says(owner)}
        document = self.memories.add(self.says(owner), source=source, metadata=extra)
        self.mine(owner, [each.text for each in document])

    def do_search(self, owner: Owner) -> None:
        found = self.memories.search(self.says(self.stranger(owner)), top_k=50)
        self.mine(owner, [each.text for each in found])

    def do_change(self, owner: Owner) -> None:
        change = self.chance.choice([self.memories.supersede, self.memories.update])
        with suppress(ConfigError):  # it is superseded already
            self.mine(owner, [change(self.an_id(owner), self.says(owner)).text])

    def do_delete(self, owner: Owner) -> None:
        self.memories.delete(self.an_id(owner), purge=self.chance.random() < 0.1)

    def do_forget(self, owner: Owner) -> None:
        digits = f" {self.chance.randrange(10)}"  # a tenth of everybody's texts
        gone = self.memories.forget(text=digits, purge=self.chance.random() < 0.1)
        for memory_id in gone.mentions:
            with suppress(MemoryNotFoundError):
                self.mine(owner, [self.memories.get(memory_id).text])

    def do_expire(self, owner: Owner) -> None:
        over = datetime.now(UTC) - timedelta(days=1)
        self.memories.add(self.says(owner), expires_at=over)
        self.doors.ml.engine.bank.expire()

    def do_steal(self, owner: Owner) -> None:
        """A stranger's id is as good as none."""
        theirs = self.an_id(self.stranger(owner))
        for touch in (
            lambda: self.memories.get(theirs),
            lambda: self.memories.delete(theirs, purge=False),
            lambda: self.memories.update(theirs, self.says(owner), purge=False),
            lambda: self.memories.supersede(theirs, self.says(owner)),
        ):
            try:
                touch()
            except MemoryNotFoundError:
                continue
            raise AssertionError(f"{owner} reached a stranger's memory")

    def do_export(self, owner: Owner) -> None:
        """An archive made while others write: looked at byte by byte, then taken in elsewhere."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "mine"
            self.doors.ml.export(path, **owner.named)
            self.nobody_elses(owner, path.read_bytes().decode("latin-1"))
            self.mine(owner, _said(read_archive(path).lines))
            options = {**self.doors.place["options"], "capacity_tokens": None}
            with MemLong(self.doors.place["model"], ":memory:", **options) as other:
                other.restore(path)
                if {each.name for each in other.stats()} - {owner.user or owner.session}:
                    raise AssertionError(f"{owner}'s archive brought {other.stats()}")
                restored = other.memories(**owner.named)
                self.mine(owner, [each.text for each in restored.list()])
                self.mine(owner, [each.text for each in restored.search(WORDS[0], top_k=50)])


def _said(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Lines that hold a text; the recall log names memories by id only."""
    return [json.dumps(line) for line in lines if "text" in line or "value" in line]


def main(model: str, bank: str, number: int, operations: int) -> None:
    doors = {tenant: Doors(model, bank, tenant) for tenant in ("acme", "globex")}
    workers = [Worker(doors, 4 * number + i) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda worker: worker.run(operations), workers))
    for each in doors.values():
        each.ml.close()
    done = sum((worker.done for worker in workers), Counter[str]())
    sums = {name: sum(getattr(w, name) for w in workers) for name in ("looked_at", "evicted")}
    sys.stdout.write(json.dumps({"done": done, **sums}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
