"""The contract of a bank as tests, for every back end.

In: a fixture that opens the back end's bank. Out: a failure for each promise of
:class:`memlong_agent.storage.contract.StorageBase` that is not kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from memlong_agent.storage import Storage
from memlong_agent.testing.contract.forgetting import Forgetting
from memlong_agent.testing.contract.lasting import Lasting
from memlong_agent.testing.contract.making import EMBEDDER, MODEL, SPEC, Clock, Opener
from memlong_agent.testing.contract.recalling import Recalling
from memlong_agent.testing.contract.sharing import Sharing
from memlong_agent.testing.contract.writing import Writing

__all__ = ["Clock", "Opener", "StorageContract"]


class StorageContract(Writing, Recalling, Forgetting, Sharing, Lasting):
    """Subclass it as `Test...` and give it the fixture `open_bank`.

    `open_bank` returns a function: each call of it opens the bank of this test once more, a new one
    at first, with the options of :meth:`Storage.open`. A back end whose banks end with their
    process sets `lasting = False`, and opens another bank at each call.
    """

    @pytest.fixture
    def open_bank(self) -> Opener:
        raise NotImplementedError("Override the fixture open_bank: it opens the bank of the test.")

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def bank(self, open_bank: Opener, clock: Clock) -> Iterator[Storage]:
        """The test's bank, claimed; it must be whole afterwards."""
        with open_bank(clock=clock) as storage:
            storage.claim(MODEL, SPEC)
            storage.claim_retrieval(EMBEDDER)
            yield storage
            assert storage.verify() == []
