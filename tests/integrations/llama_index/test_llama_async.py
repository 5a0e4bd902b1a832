"""Event loops, threads and cancellation, on the real engine."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from llama_helpers import says
from llama_index.core.llms import ChatResponse
from llama_index.llms.memlong import MemLongLLM

TOLD = "My dog is called Rex."
# Near-uniform sampling hardly ever ends a reply: the one way to make the tiny model talk on.
ENDLESS: dict[str, Any] = {"temperature": 100.0, "seed": 1, "max_tokens": 600}


def workers_done() -> None:
    """Wait until no shared thread works on a stream any more."""
    while any(thread.name == "memlong-stream" for thread in threading.enumerate()):
        time.sleep(0.01)


async def ticked(work: Awaitable[Any], every_s: float = 0.01) -> tuple[Any, int, float]:
    """The result of `work`, ticks of the event loop meanwhile, and its longest stall in seconds."""
    ticks, longest = 0, 0.0

    async def tick() -> None:
        nonlocal ticks, longest
        while True:
            start = time.perf_counter()
            await asyncio.sleep(every_s)
            ticks, longest = ticks + 1, max(longest, time.perf_counter() - start - every_s)

    ticker = asyncio.create_task(tick())
    result = await work
    ticker.cancel()
    return result, ticks, longest


def test_the_event_loop_keeps_ticking(llm: MemLongLLM) -> None:
    llm.chat(says("Hello"))  # loads the weights
    long = {**ENDLESS, "max_tokens": 150}

    async def scene() -> None:
        start = time.perf_counter()
        answer, ticks, longest = await ticked(llm.achat(says("Hello"), **long))
        took = time.perf_counter() - start
        assert answer.raw["usage"]["completion_tokens"] > 20
        assert ticks >= 5 and longest < took / 2, f"{ticks} ticks, stall {longest:.3f} of {took}"

    asyncio.run(scene())


@pytest.fixture
def passes(llm: MemLongLLM) -> Iterator[list[int]]:
    """Grows by one with every forward pass of the model."""
    counted: list[int] = []
    hook = llm.memlong.engine.model.lm.register_forward_hook(
        lambda module, given, result: counted.append(1)
    )
    yield counted
    hook.remove()


async def test_a_closed_async_stream_stops_within_a_token(
    llm: MemLongLLM, user: str, texts: Any, passes: list[int]
) -> None:
    bound = llm.with_session("chat", user)
    stream = await bound.astream_chat(says(TOLD), **ENDLESS)
    for _ in range(20):
        await anext(stream)
    before = len(passes)
    await stream.aclose()  # the inner generators are finalized by the loop, one step later
    await asyncio.to_thread(workers_done)
    assert len(passes) - before <= 3, "570 tokens were still to come"
    assert texts(user) == []
    told = await bound.achat(says(TOLD))
    assert told.raw["memlong"]["memory_ids"], "the session goes on"


@pytest.mark.parametrize("way", ["achat", "acomplete"])
async def test_a_cancelled_task_stops_the_work(
    way: str, llm: MemLongLLM, user: str, texts: Any, passes: list[int]
) -> None:
    bound = llm.with_session("chat", user)
    given = says(TOLD) if way == "achat" else TOLD
    task = asyncio.create_task(getattr(bound, way)(given, **ENDLESS))
    while len(passes) < 5:
        await asyncio.sleep(0.001)
    before = len(passes)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(passes) - before <= 2, "the task ends when its work has ended"
    await asyncio.to_thread(workers_done)
    assert texts(user) == []
    told = await bound.achat(says(TOLD))
    assert told.raw["memlong"]["memory_ids"]


def test_a_closed_stream_writes_nothing(
    llm: MemLongLLM, user: str, texts: Any, passes: list[int]
) -> None:
    bound = llm.with_session("chat", user)
    stream = bound.stream_chat(says(TOLD), **ENDLESS)
    next(stream)
    before = len(passes)
    stream.close()
    assert len(passes) == before
    assert texts(user) == []
    assert bound.chat(says(TOLD)).raw["memlong"]["memory_ids"]


def test_32_streams_at_once(tmp_path: Path) -> None:
    """All complete, each session's turns in the order of the calls, and few threads: counted
    before the bank has any, with recalls that it reads on several."""
    llm = MemLongLLM(bank=tmp_path / "bank", options={"embedder": "hash"}, max_tokens=16)
    sessions = [f"chat-{number}" for number in range(8)]
    for name in sessions:
        for fact in range(5):
            llm.memlong.memories(user_id=name).add(f"Turn {fact} of {name} was long ago.")
    before = threading.active_count()

    async def one(session: str, text: str) -> ChatResponse:
        bound = llm.with_session(session, session)
        (*_, last) = [each async for each in await bound.astream_chat(says(text))]
        return last

    async def scene() -> list[ChatResponse]:
        calls = [one(name, f"Turn {n} of {name}.") for n in range(4) for name in sessions]
        return await asyncio.gather(*calls)

    answers = asyncio.run(scene())
    assert len(answers) == 32
    assert min(len(answer.raw["memlong"]["recalls"]) for answer in answers) >= 4
    for name in sessions:
        written = reversed(llm.memlong.memories(user_id=name).list(session_id=name))
        said = [memory.text.partition("\n")[0] for memory in written]
        assert said == [f"User: Turn {n} of {name}." for n in range(4)]
    workers_done()
    assert threading.active_count() <= before + 4
    llm.memlong.close()
    assert threading.active_count() == before


def test_interleaved_calls_never_cross_users(llm: MemLongLLM, user: str, texts: Any) -> None:
    """Two users with two sessions each, 200 random calls over threads and an event loop."""
    secrets = {f"{user}-ann": "quartz", f"{user}-ben": "marble"}
    draw = random.Random(7)
    short: dict[str, Any] = {"max_tokens": 4}

    def call(whose: str, number: int) -> tuple[MemLongLLM, Any]:
        bound = llm.with_session(f"chat-{draw.randrange(2)}", whose)
        asks = draw.random() < 0.5
        text = "What is my stone?" if asks else f"My stone number {number} is {secrets[whose]}."
        return bound, says(text)

    planned = [(whose, *call(whose, n)) for n in range(100) for whose in secrets]
    draw.shuffle(planned)

    async def on_the_loop() -> list[tuple[str, ChatResponse]]:
        async def one(whose: str, bound: MemLongLLM, given: Any) -> tuple[str, ChatResponse]:
            return whose, await bound.achat(given, **short)

        return await asyncio.gather(*[one(*each) for each in planned[::2]])

    with ThreadPoolExecutor(3) as pool:
        futures = [
            (whose, pool.submit(bound.chat, given, **short))
            for whose, bound, given in planned[1::2]
        ]
        answers = asyncio.run(on_the_loop())
        answers += [(whose, future.result()) for whose, future in futures]
    recalled = 0
    for whose, answer in answers:
        (foreign,) = set(secrets) - {whose}
        found = [recall["text"] for recall in answer.raw["memlong"]["recalls"]]
        assert not any(secrets[foreign] in text for text in found)
        recalled += len(found)
    assert recalled > 0
    for whose, word in secrets.items():
        (foreign,) = set(secrets.values()) - {word}
        assert texts(whose) and not any(foreign in text for text in texts(whose))
