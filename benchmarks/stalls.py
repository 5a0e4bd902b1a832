"""The longest stall of an event loop while replies are made: a 10 ms ticker beside each call.

In: a model of each adapter, on the bundled memlong-tiny. Out: how late the ticker's latest tick was
in every round, in milliseconds. Rounds without any call, on the same machine, say how late ticks
are anyway.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.rows import Bar, Options, Row, Spread, row

BAR = Bar("<=", 50)
_INTEGRATIONS = Path(__file__).resolve().parent.parent / "integrations"
_TICK_S = 0.01
_ROUNDS = 5
_TOKENS = 128
_FACT, _QUESTION = "My dog is called Rex.", "What is my dog called?"
_SAMPLING: dict[str, Any] = {
    "bank": ":memory:",
    "max_tokens": _TOKENS,
    "temperature": 3.0,  # hot enough never to end by itself
    "seed": 1,
}
Call = Callable[[str], Awaitable[object]]


def measure(options: Options) -> list[Row]:
    """Both adapters, awaited and streamed; five rounds each, two under `--quick`."""
    rounds = 2 if options.quick else _ROUNDS
    sys.path.insert(0, str(_INTEGRATIONS))  # as it is in a checkout that nobody has installed
    try:
        calls = {**_langchain(options.device), **_llama_index(options.device)}
    finally:
        sys.path.remove(str(_INTEGRATIONS))
    note = f"{_TICK_S * 1000:.0f} ms ticker beside {_TOKENS} tokens"
    rows = [row("stalls: no call", _stalls(_nothing, rounds), "ms", note="the ticker alone")]
    for name, call in calls.items():
        rows.append(row(f"stalls: {name}", _stalls(call, rounds), "ms", BAR, note))
    return rows


def _langchain(device: str) -> dict[str, Call]:
    from langchain_memlong import ChatMemLong

    chat = ChatMemLong(**_SAMPLING, options={"device": device}, user_id="alice", session_id="lc")

    async def streamed(text: str) -> None:
        async for _ in chat.astream(text):
            pass

    return {"LangChain ainvoke": chat.ainvoke, "LangChain astream": streamed}


def _llama_index(device: str) -> dict[str, Call]:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.memlong import MemLongLLM

    llm = MemLongLLM(**_SAMPLING, options={"device": device}).with_session("li", user_id="alice")

    async def awaited(text: str) -> None:
        await llm.achat([ChatMessage(role="user", content=text)])

    async def streamed(text: str) -> None:
        async for _ in await llm.astream_chat([ChatMessage(role="user", content=text)]):
            pass

    return {"LlamaIndex achat": awaited, "LlamaIndex astream_chat": streamed}


async def _nothing(text: str) -> None:
    await asyncio.sleep(1)


def _stalls(call: Call, rounds: int) -> Spread:
    """The longest stall of each round."""

    async def warm_then_measured() -> list[float]:
        await call(_FACT)  # loads the model; threads and caches are warm afterwards
        return [await _longest_ms(call, _QUESTION) for _ in range(rounds)]

    return Spread.of(asyncio.run(warm_then_measured()))


async def _longest_ms(call: Call, text: str) -> float:
    """How much later than it should the latest tick came."""
    late: list[float] = []

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(_TICK_S)
            late.append(time.perf_counter() - began - _TICK_S)

    ticker = asyncio.create_task(tick())
    await call(text)
    await asyncio.sleep(2 * _TICK_S)  # a stall that ends with the call is seen by the next tick
    ticker.cancel()
    return 1000 * max(late)
