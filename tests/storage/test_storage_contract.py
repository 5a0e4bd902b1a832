"""The contract of the storage room on every back end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PostgresServer

from memlong_agent.storage import Storage
from memlong_agent.storage.keys import Key
from memlong_agent.testing import StorageContract
from memlong_agent.testing.contract import Opener


class TestFolder(StorageContract):
    @pytest.fixture
    def open_bank(self, tmp_path: Path) -> Opener:
        return lambda **options: Storage.open(tmp_path / "bank", **options)


class TestMemory(StorageContract):
    lasting = False

    @pytest.fixture
    def open_bank(self) -> Opener:
        return lambda **options: Storage.open(":memory:", **options)


class TestEncryptedFolder(StorageContract):
    @pytest.fixture
    def open_bank(self, tmp_path: Path) -> Opener:
        key = Key(bytes(32))
        return lambda **options: Storage.open(tmp_path / "bank", key=key, **options)


class TestPostgres(StorageContract):
    @pytest.fixture
    def open_bank(self, tmp_path: Path, postgres: PostgresServer) -> Opener:
        url = postgres.url()
        return lambda **options: Storage.open(tmp_path / "bank", database=url, **options)


@pytest.mark.skipif(os.environ.get("MEMLONG_TESTS") != "full", reason="needs MEMLONG_TESTS=full")
class TestEncryptedPostgres(StorageContract):
    @pytest.fixture
    def open_bank(self, tmp_path: Path, postgres: PostgresServer) -> Opener:
        fixed: dict[str, Any] = {"database": postgres.url(), "key": Key(bytes(32))}
        return lambda **options: Storage.open(tmp_path / "bank", **fixed, **options)
