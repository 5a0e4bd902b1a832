"""Streams on shared threads: order, cancellation, errors, and an event loop that goes on."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Generator
from itertools import pairwise
from typing import Any

import pytest

from memlong_agent import MemLong, MemLongError, Reply
from memlong_agent.memlong import BackgroundStream, Stream, background
from memlong_agent.memlong.background import _WORKERS, MAX_THREADS

Open = Callable[..., MemLong]
LONG: dict[str, Any] = {"max_tokens": 200, "temperature": 1.5, "seed": 1}


def ask(ml: MemLong, text: str, **options: Any) -> BackgroundStream:
    chosen = {"session_id": "a", "write": True, "max_tokens": 5, **options}
    return background(ml.respond([{"role": "user", "content": text}], **chosen))


def workers() -> int:
    return sum(thread.name == "memlong-stream" for thread in threading.enumerate())


def threads() -> int:
    """All but the bank's four for reading, which begin with the first recall of four chunks."""
    return sum(not thread.name.startswith("memlong-blobs") for thread in threading.enumerate())


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def test_pieces_and_reply_are_those_of_the_stream(open_memlong: Open) -> None:
    ml = open_memlong()
    stream = ml.respond([{"role": "user", "content": "Hi."}], temperature=1.0, seed=2)
    pieces = list(stream)
    other = ask(ml, "Hi.", session_id=None, write=False, temperature=1.0, seed=2, max_tokens=256)
    with pytest.raises(MemLongError, match="not finished"):
        _ = other.reply
    assert list(other) == pieces
    assert other.reply.text == stream.reply.text
    assert list(other) == [], "and it stays at its end"


async def test_32_at_once_keep_each_sessions_order_on_four_threads(open_memlong: Open) -> None:
    ml = open_memlong()
    before = threads()

    async def consume(stream: BackgroundStream) -> Reply:
        async for _ in stream:
            assert workers() <= MAX_THREADS
        return stream.reply

    said = [(f"s{n % 4}", f"Turn {n} is said.") for n in range(32)]
    streams = [ask(ml, text, session_id=session, user_id="u") for session, text in said]
    await asyncio.gather(*(consume(stream) for stream in streams))
    for session in ("s0", "s1", "s2", "s3"):
        written = ml.memories(user_id="u").list(session_id=session)
        texts = [memory.text.splitlines()[0] for memory in reversed(written)]
        assert texts == [f"User: {text}" for name, text in said if name == session]
    until(lambda: workers() == 0)
    assert threads() <= before + MAX_THREADS


async def test_the_event_loop_goes_on_ticking(open_memlong: Open) -> None:
    ml = open_memlong()
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.perf_counter())
            await asyncio.sleep(0.01)

    ticker = asyncio.create_task(tick())
    stream = ask(ml, "Tell me about the harbor. " * 20, **LONG)
    pieces = [piece async for piece in stream]
    ticker.cancel()
    assert pieces and len(ticks) > 10
    # A forward pass holds up a loop in the same thread for its whole length; here nothing does.
    gaps = sorted(later - earlier for earlier, later in pairwise(ticks))
    assert gaps[len(gaps) // 2] < 0.05


@pytest.mark.parametrize("how", ["close", "aclose", "cancel", "drop"])
async def test_a_cancelled_reply_stops_writes_nothing_and_the_session_goes_on(
    open_memlong: Open, how: str
) -> None:
    ml = open_memlong()
    stream = ask(ml, "Tell me a story.", **LONG)
    inner = stream._job.stream
    await anext(stream)
    if how == "close":
        stream.close()
        await _drain(stream)
    elif how == "aclose":
        await stream.aclose()
        with pytest.raises(StopIteration):  # a stream that still works would say ValueError
            inner.step()
    elif how == "cancel":
        waiting = asyncio.create_task(_drain(stream))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    else:
        del stream
        gc.collect()
    until(lambda: workers() == 0)
    with pytest.raises(MemLongError, match="not finished"):
        _ = inner.reply
    assert ml.stats() == {}
    after = ask(ml, "And now?")
    async for _ in after:
        pass
    assert after.reply.memory_ids


async def _drain(stream: BackgroundStream) -> None:
    async for _ in stream:
        pass


def steps(log: list[str], most: int = 10_000) -> Generator[str, None, Reply]:
    try:
        for n in range(most):
            log.append(f"step {n}")
            yield "" if n else "first"
            time.sleep(0.001)  # a token's work: the steps must outlast the cancellation
        return Reply(text="done")
    finally:
        log.append("closed")


def test_cancelling_stops_within_one_step_also_where_no_text_comes() -> None:
    log: list[str] = []
    stream = background(Stream(steps(log)))
    assert next(stream) == "first"
    stream.close()
    reached = len(log)
    until(lambda: "closed" in log)
    assert len(log) <= reached + 2
    assert list(stream) == []


def test_closing_while_another_thread_steps_is_an_end_and_no_error() -> None:
    closing, go_on = threading.Event(), threading.Event()

    def pieces() -> Generator[str, None, Reply]:
        try:
            yield "first"
            return Reply(text="done")
        finally:
            closing.set()
            go_on.wait(60)

    stream, ended = Stream(pieces()), []
    assert next(stream) == "first"

    def step() -> None:
        try:
            stream.step()
        except BaseException as exc:  # whatever it is, the assertion below judges it
            ended.append(type(exc))

    threads = [threading.Thread(target=each) for each in (stream.close, step)]
    threads[0].start()
    assert closing.wait(60)
    threads[1].start()
    time.sleep(0.05)  # so that it most likely waits inside; it must end the same way before that
    go_on.set()
    for thread in threads:
        thread.join()
    assert ended == [StopIteration]


async def test_one_that_waits_for_its_session_elsewhere_is_cancelled_at_once(
    open_memlong: Open,
) -> None:
    ml = open_memlong()
    holder = ml.session("a").stream("Hello.", **LONG)
    next(holder)
    waiting = ask(ml, "And me?")
    await asyncio.sleep(0.2)
    await asyncio.wait_for(waiting.aclose(), 30)
    holder.close()
    assert list(ask(ml, "And now?", temperature=1.0, seed=1))
    (written,) = ml.memories(session_id="a").list()
    assert written.text.startswith("User: And now?")


def test_a_stream_that_is_collected_asks_for_no_lock() -> None:
    log: list[str] = []
    streams = [background(Stream(steps(log)))]

    def collect() -> None:
        with _WORKERS._guard:
            streams.clear()
            gc.collect()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    until(lambda: workers() == 0)


def test_one_that_waits_is_cancelled_without_ever_running() -> None:
    logs: list[list[str]] = [[] for _ in range(MAX_THREADS + 1)]
    streams = [background(Stream(steps(log))) for log in logs]
    until(lambda: all(logs[:MAX_THREADS]))
    streams[-1].close()
    assert list(streams[-1]) == []
    for stream in streams:
        stream.close()
    until(lambda: workers() == 0)
    assert logs[-1] == []


def test_one_lane_runs_in_order_and_holds_up_no_other() -> None:
    log: list[str] = []
    first = background(Stream(steps(log), lane="a"))
    second = background(Stream(steps([], most=1), lane="a"))
    third = background(Stream(steps([], most=1), lane="b"))
    assert list(third) == ["first"] and third.reply.text == "done"
    with pytest.raises(MemLongError):
        _ = second.reply
    first.close()
    assert list(second) == ["first"] and second.reply.text == "done"


async def test_an_error_reaches_whoever_waits(open_memlong: Open) -> None:
    ml = open_memlong()
    schema: dict[str, Any] = {"schema": {"not": {}}}
    with pytest.raises(MemLongError, match="cannot be guaranteed"):
        list(ask(ml, "Hi.", **schema))
    with pytest.raises(MemLongError, match="cannot be guaranteed"):
        async for _ in ask(ml, "Hi.", **schema):
            pass
    until(lambda: workers() == 0)
