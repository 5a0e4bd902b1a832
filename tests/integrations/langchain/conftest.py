"""Chat models on memlong-tiny that share one engine, and users whom no other test knows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("langchain_core", reason="needs the extra [langchain]")

from langchain_memlong import ChatMemLong
from lc_helpers import PLACE

from memlong_agent import MemLong

_numbers = itertools.count()


@pytest.fixture
def user() -> str:
    return f"user-{next(_numbers)}"


@pytest.fixture
def make_chat() -> Callable[..., ChatMemLong]:
    """`ChatMemLong` on the engine of all these tests."""
    return lambda **fields: ChatMemLong(**{**PLACE, "max_tokens": 32, **fields})


@pytest.fixture
def chat(make_chat: Callable[..., ChatMemLong]) -> ChatMemLong:
    return make_chat()


@pytest.fixture
def engine(chat: ChatMemLong) -> Iterator[MemLong]:
    """What all of them share; sound after each test."""
    engine = chat.memlong()
    yield engine
    assert engine.engine.bank.verify() == []
