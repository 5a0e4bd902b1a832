"""The tables, nothing else. Statements live in reads.py, writes.py and upkeep.py.

The DDL that makes them is frozen in migrations.py; a test holds the two together.
The full-text table is not here: it belongs to lexical.py.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)

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


metadata = MetaData()
_Json = JSON(none_as_null=True)


def _ref(name: str, target: str, ondelete: str, **options: Any) -> Column[int]:
    return Column(name, Integer, ForeignKey(target, ondelete=ondelete), **options)


meta = Table(
    "meta", metadata, Column("key", Text, primary_key=True), Column("value", Text, nullable=False)
)
migrations = Table(
    "migrations",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("applied_at", Utc, nullable=False),
)
owners = Table(
    "owners",
    metadata,
    Column("pk", Integer, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    # Kept by writes.py with every chunk: counting 1e5 rows for each query would cost 2 ms.
    Column("chunks", Integer, nullable=False, default=0),
    Column("tokens", Integer, nullable=False, default=0),
    # How often memories were forgotten or changed; live windows are not older than this.
    Column("forgotten", Integer, nullable=False, default=0),
)
sessions = Table(
    "sessions",
    metadata,
    Column("pk", Integer, primary_key=True),
    _ref("owner_id", "owners.pk", "CASCADE", nullable=False),
    Column("external_id", Text, nullable=False),
)
memories = Table(
    "memories",
    metadata,
    Column("pk", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    _ref("owner_id", "owners.pk", "CASCADE", nullable=False),
    _ref("session_id", "sessions.pk", "SET NULL"),
    Column("role", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("messages", _Json),
    Column("source", Text),
    Column("ordinal", Integer),
    Column("metadata", _Json, nullable=False),
    Column("message_id", Text),
    Column("text_digest", Text, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("expires_at", Utc),
    _ref("superseded_by", "memories.pk", "SET NULL"),
    Column("recallable", Boolean, nullable=False),
    Column("pending", Text),
    Column("pending_at", Utc),
    Column("turn", Text),  # that wrote this exchange; recalls.turn says what it recalled
)
chunks = Table(
    "chunks",
    metadata,
    Column("pk", Integer, primary_key=True),
    _ref("memory_pk", "memories.pk", "CASCADE", nullable=False),
    _ref("owner_id", "owners.pk", "CASCADE", nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("header", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("token_ids", LargeBinary, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("counter", Integer, nullable=False, default=0),
    Column("last_recalled_at", Utc),
)
blobs = Table(
    "blobs",
    metadata,
    _ref("chunk_pk", "chunks.pk", "CASCADE", primary_key=True),
    Column("blob_id", Text, nullable=False, unique=True),
    Column("nbytes", Integer, nullable=False),
    Column("checksum", Text, nullable=False),
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
    Column("seq", Integer, primary_key=True),
    _ref("owner_id", "owners.pk", "CASCADE", nullable=False),
    Column("chunk_pk", Integer, nullable=False),
    Column("op", Text, nullable=False),
)
recalls = Table(
    "recalls",
    metadata,
    Column("pk", Integer, primary_key=True),
    Column("turn", Text, nullable=False),
    _ref("owner_id", "owners.pk", "CASCADE", nullable=False),
    _ref("chunk_pk", "chunks.pk", "SET NULL"),
    Column("rank", Integer, nullable=False),
    Column("score", Float, nullable=False),
    Column("attention_mass", Float),
    Column("at", Utc, nullable=False),
    # Outlives the chunk: an update gives a memory other chunks.
    _ref("memory_pk", "memories.pk", "SET NULL"),
)
items = Table(
    "items",
    metadata,
    Column("pk", Integer, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("value", _Json, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("updated_at", Utc, nullable=False),
    Column("expires_at", Utc),
    Column("ttl_s", Float),
    Column("vectors", LargeBinary),
    _ref("owner_id", "owners.pk", "CASCADE"),
    _ref("memory_pk", "memories.pk", "SET NULL"),
)
