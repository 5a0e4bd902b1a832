"""The tables, nothing else. Statements live in reads.py, writes.py and upkeep.py.

The DDL that makes them is frozen in ddl.py; a test holds the two together.
The full-text table is not here: it belongs to lexical.py.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)

from memlong_agent.errors import ConfigError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Utc(TypeDecorator[datetime]):
    """An aware datetime, kept as integer microseconds since 1970 (naive columns lose the zone)."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class Utf8(TypeDecorator[str]):
    """A text that every database keeps: PostgreSQL has no NUL character, so none has one."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is not None and "\0" in value:
            raise ConfigError(
                f"{value[:60]!r} cannot be stored: it holds a NUL character. Pass text without one."
            )
        return value


class Json(TypeDecorator[Any]):
    """JSON kept as text, so that no database has an opinion on it; None is NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


metadata = MetaData()


def _ref(name: str, target: str, ondelete: str, **options: Any) -> Column[int]:
    return Column(name, BigInteger, ForeignKey(target, ondelete=ondelete), **options)


meta = Table(
    "meta", metadata, Column("key", Utf8, primary_key=True), Column("value", Utf8, nullable=False)
)
migrations = Table(
    "migrations",
    metadata,
    Column("number", BigInteger, primary_key=True),
    Column("name", Utf8, nullable=False),
    Column("applied_at", Utc, nullable=False),
)
owners = Table(
    "owners",
    metadata,
    Column("pk", BigInteger, primary_key=True),
    Column("tenant", Utf8, nullable=False),
    Column("kind", Utf8, nullable=False),
    Column("name", Utf8, nullable=False),
    # Kept by writes.py with every chunk: counting 1e5 rows for each query would cost 2 ms.
    Column("chunks", BigInteger, nullable=False, default=0),
    Column("tokens", BigInteger, nullable=False, default=0),
    # How often memories were forgotten or changed; live windows are not older than this.
    Column("forgotten", BigInteger, nullable=False, default=0),
)
sessions = Table(
    "sessions",
    metadata,
    Column("pk", BigInteger, primary_key=True),
    _ref("owner_id", "owners.pk", "CASCADE", nullable=False),
    Column("external_id", Utf8, nullable=False),
)
memories = Table(
    "memories",
    metadata,
    Column("pk", BigInteger, primary_key=True),
    Column("id", Utf8, nullable=False, unique=True),
    _ref("owner_id", "owners.pk", "CASCADE", nullable=False),
    _ref("session_id", "sessions.pk", "SET NULL"),
    Column("role", Utf8, nullable=False),
    Column("text", Utf8, nullable=False),
    Column("messages", Json),
    Column("source", Utf8),
    Column("ordinal", BigInteger),
    Column("metadata", Json, nullable=False),
    Column("message_id", Utf8),
    Column("text_digest", Utf8, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("expires_at", Utc),
    _ref("superseded_by", "memories.pk", "SET NULL"),
    Column("recallable", Boolean, nullable=False),
    Column("pending", Utf8),
    Column("pending_at", Utc),
    Column("turn", Utf8),  # that wrote this exchange; recalls.turn says what it recalled
)
chunks = Table(
    "chunks",
    metadata,
    Column("pk", BigInteger, primary_key=True),
    _ref("memory_pk", "memories.pk", "CASCADE", nullable=False),
    _ref("owner_id", "owners.pk", "CASCADE", nullable=False),
    Column("ordinal", BigInteger, nullable=False),
    Column("header", Utf8, nullable=False),
    Column("text", Utf8, nullable=False),
    Column("token_ids", LargeBinary, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("counter", BigInteger, nullable=False, default=0),
    Column("last_recalled_at", Utc),
)
blobs = Table(
    "blobs",
    metadata,
    _ref("chunk_pk", "chunks.pk", "CASCADE", primary_key=True),
    Column("blob_id", Utf8, nullable=False, unique=True),
    Column("nbytes", BigInteger, nullable=False),
    Column("checksum", Utf8, nullable=False),
)
vectors = Table(
    "vectors",
    metadata,
    _ref("chunk_pk", "chunks.pk", "CASCADE", primary_key=True),
    Column("vector", LargeBinary, nullable=False),
)
events = Table(
    "events",
    metadata,
    Column("seq", BigInteger, primary_key=True),
    _ref("owner_id", "owners.pk", "CASCADE", nullable=False),
    Column("chunk_pk", BigInteger, nullable=False),
    Column("op", Utf8, nullable=False),
)
recalls = Table(
    "recalls",
    metadata,
    Column("pk", BigInteger, primary_key=True),
    Column("turn", Utf8, nullable=False),
    _ref("owner_id", "owners.pk", "CASCADE", nullable=False),
    _ref("chunk_pk", "chunks.pk", "SET NULL"),
    Column("rank", BigInteger, nullable=False),
    Column("score", Float, nullable=False),
    Column("attention_mass", Float),
    Column("at", Utc, nullable=False),
    # Outlives the chunk: an update gives a memory other chunks.
    _ref("memory_pk", "memories.pk", "SET NULL"),
)
items = Table(
    "items",
    metadata,
    Column("pk", BigInteger, primary_key=True),
    Column("tenant", Utf8, nullable=False),
    Column("namespace", Utf8, nullable=False),
    Column("key", Utf8, nullable=False),
    Column("value", Json, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("updated_at", Utc, nullable=False),
    Column("expires_at", Utc),
    Column("ttl_s", Float),
    Column("vectors", LargeBinary),
    _ref("owner_id", "owners.pk", "CASCADE"),
    _ref("memory_pk", "memories.pk", "SET NULL"),
)
