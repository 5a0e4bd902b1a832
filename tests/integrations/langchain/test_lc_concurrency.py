"""Event loops that keep ticking, cancelled calls, many calls at once, time that runs out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessageChunk
from langchain_memlong import ChatMemLong
from lc_helpers import ASKED, PLACE, TOLD, exchanges, of, recalls, said

from memlong_agent import MemLong, MemLongError

STORY = {"max_tokens": 200, "temperature": 3.0, "seed": 1}  # hot enough never to end by itself
TICK_S, LONGEST_STALL_S = 0.01, 0.25


@asynccontextmanager
async def ticking() -> AsyncIterator[list[float]]:
    """Seconds between the ticks of a 10 ms ticker that shares the event loop."""
    gaps: list[float] = []

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    task = asyncio.create_task(tick())
    try:
        yield gaps
    finally:
        task.cancel()


@pytest.mark.parametrize("way", ["ainvoke", "astream", "abatch"])
async def test_the_event_loop_keeps_ticking(
    make_chat: Callable[..., ChatMemLong], engine: MemLong, user: str, way: str
) -> None:
    chat = make_chat(**STORY)
    await chat.ainvoke(TOLD, of(user, "first"))  # threads and caches are warm
    began = time.perf_counter()
    async with ticking() as gaps:
        if way == "ainvoke":
            await chat.ainvoke(ASKED, of(user, "second"))
        elif way == "abatch":
            await chat.abatch([ASKED, ASKED], [of(user, "second"), of(user, "third")])
        else:
            async for _ in chat.astream(ASKED, of(user, "second")):
                pass
    took = time.perf_counter() - began
    # A loop that waits for the reply has one gap of all the time it took; on a busy machine every
    # gap grows with that time.
    allowed = max(LONGEST_STALL_S, took / 4)
    assert max(gaps) < allowed, f"longest stall {max(gaps):.3f} s of {took:.1f} s"


class Ends(BaseCallbackHandler):
    """Counts how calls begin and end."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_chat_model_start(self, *args: object, **kwargs: object) -> None:
        self.seen.append("start")

    def on_llm_end(self, *args: object, **kwargs: object) -> None:
        self.seen.append("end")

    def on_llm_error(self, *args: object, **kwargs: object) -> None:
        self.seen.append("error")


def steps_taken(engine: MemLong, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every forward pass of the model, from now on."""
    taken: list[int] = []
    model = type(engine.engine.model)  # its instances are frozen
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        taken.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    return taken


async def test_a_cancelled_task_stops_within_a_token_and_writes_nothing(
    make_chat: Callable[..., ChatMemLong],
    engine: MemLong,
    user: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat, ends, begun = make_chat(**STORY), Ends(), asyncio.Event()
    taken = steps_taken(engine, monkeypatch)

    async def listen() -> None:
        async for chunk in chat.astream(TOLD, {**of(user, "first"), "callbacks": [ends]}):
            if chunk.text:
                begun.set()

    task = asyncio.create_task(listen())
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)  # now the task has heard of it
    at_cancel = len(taken)
    with pytest.raises(asyncio.CancelledError):
        await task
    at_end = len(taken)
    await asyncio.sleep(0.2)
    assert len(taken) == at_end, "no work goes on behind the cancelled task's back"
    assert at_end <= at_cancel + 1 < STORY["max_tokens"]
    assert ends.seen == ["start", "error"]
    assert exchanges(engine, user) == []
    await make_chat().ainvoke(TOLD, of(user, "first"))
    assert said(engine, user) == [TOLD], "the session goes on"


async def test_cancelling_ainvoke_and_closing_astream_write_nothing(
    make_chat: Callable[..., ChatMemLong], engine: MemLong, user: str
) -> None:
    chat = make_chat(**STORY)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await chat.ainvoke(TOLD, of(user, "first"))
    stream = chat.astream(TOLD, of(user, "first"))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]  # an async generator
    assert exchanges(engine, user) == []
    await make_chat().ainvoke(TOLD, of(user, "first"))
    assert said(engine, user) == [TOLD]


def test_closing_a_stream_writes_nothing(
    make_chat: Callable[..., ChatMemLong], engine: MemLong, user: str
) -> None:
    stream = make_chat(**STORY).stream(TOLD, of(user, "first"))
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert exchanges(engine, user) == []
    make_chat().invoke(TOLD, of(user, "first"))
    assert said(engine, user) == [TOLD]


async def test_thirty_two_streams_at_once_keep_each_sessions_order(tmp_path: Path) -> None:
    """Threads are counted before the bank has any, with recalls that it reads on several."""
    chat = ChatMemLong(bank=tmp_path / "bank", options=PLACE["options"], max_tokens=6)
    engine = chat.memlong()
    for fact in range(5):
        engine.memories(user_id="ann").add(f"Turn {fact} was said long ago.")
    before = threading.active_count()

    async def listen(number: int) -> AIMessageChunk:
        config = of("ann", f"s{number % 4}")
        chunks = [each async for each in chat.astream(f"Turn {number:02} is said.", config)]
        return sum(chunks[1:], chunks[0])

    replies = await asyncio.gather(*[listen(number) for number in range(32)])
    assert min(len(recalls(reply)) for reply in replies) >= 4
    for session in range(4):
        turns = engine.memories(user_id="ann").list(session_id=f"s{session}")[::-1]
        numbers = [int(memory.text.removeprefix("User: Turn ")[:2]) for memory in turns]
        assert numbers == list(range(session, 32, 4))
    while any(thread.name == "memlong-stream" for thread in threading.enumerate()):
        await asyncio.sleep(0.01)
    assert threading.active_count() <= before + 4
    engine.close()


async def test_a_timeout_is_an_error_that_says_what_to_do_and_writes_nothing(
    make_chat: Callable[..., ChatMemLong], engine: MemLong, user: str
) -> None:
    chat = make_chat(timeout=0.001, **STORY)
    for call in (
        lambda: asyncio.to_thread(chat.invoke, TOLD, of(user, "first")),
        lambda: chat.ainvoke(TOLD, of(user, "first")),
    ):
        with pytest.raises(MemLongError, match=r"timeout=0.001 s. Raise timeout"):
            await call()
    assert exchanges(engine, user) == []
    assert make_chat(timeout=600).invoke("Hello").text
