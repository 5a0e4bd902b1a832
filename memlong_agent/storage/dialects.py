"""What SQLite and PostgreSQL say differently, for statements of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Insert, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

# The unique key that a row of a table is known by.
_KEYS = {"meta": ["key"], "items": ["tenant", "namespace", "key"]}


class ifnull(GenericFunction[Any]):  # a function of SQL
    """The first of two values that is not NULL, in the words of the unique indexes."""

    inherit_cache = True


@compiles(ifnull, "postgresql")
def _coalesce(element: ifnull, compiler: SQLCompiler, **options: Any) -> str:
    return f"coalesce{compiler.process(element.clause_expr, **options)}"


def upsert(
    conn: Connection,
    table: Table,
    values: Mapping[str, Any],
    changes: Mapping[str, Any] | None = None,
) -> Insert:
    """Insert a row, or change the one that has its unique key; None changes nothing."""
    if conn.dialect.name == "postgresql":
        into: Any = postgresql.insert(table).values(values)
    else:
        into = sqlite.insert(table).values(values)
    if changes is None:
        statement: Insert = into.on_conflict_do_nothing()
    else:
        statement = into.on_conflict_do_update(index_elements=_KEYS[table.name], set_=changes)
    return statement
