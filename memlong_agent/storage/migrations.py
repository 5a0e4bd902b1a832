"""Numbered, append-only steps from an empty database to the schema of today.

In: a connection inside a write transaction. Out: tables, and one record a step in `migrations`,
committed with the step. A step that has shipped is never edited: banks that ran it exist.
A bank is upgraded when it is asked for, never in passing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, inspect, select

from memlong_agent.errors import StoreVersionError
from memlong_agent.storage import ddl, models
from memlong_agent.storage.database import Database
from memlong_agent.storage.faults import locked


def m001_create(conn: Connection) -> None:
    """All tables, the bank's random id and the secret of its text digests."""
    ddl.run(conn, ddl.M001)
    rows = [
        {"key": "bank_id", "value": secrets.token_hex(16)},
        {"key": "secret", "value": secrets.token_hex(32)},
    ]
    conn.execute(insert(models.meta), rows)


def m002_forget(conn: Connection) -> None:
    """Which turn wrote an exchange, which memories a turn recalled, how often an owner forgot.

    Exchanges of before have no turn, so they are never among the mentions of what is forgotten.
    """
    ddl.run(conn, ddl.M002)


@dataclass(frozen=True, slots=True)
class Migration:
    """One step; `name` repeats the number so that the record reads on its own."""

    number: int
    name: str
    apply: Callable[[Connection], None]


MIGRATIONS: tuple[Migration, ...] = (
    Migration(1, "m001_create", m001_create),
    Migration(2, "m002_forget", m002_forget),
)


def applied(conn: Connection) -> list[str]:
    """Names of the steps this bank has run, in order; empty for an empty database. Read-only."""
    if not inspect(conn).has_table(models.migrations.name):
        return []
    names = select(models.migrations.c.name).order_by(models.migrations.c.number)
    return list(conn.scalars(names))


def pending(conn: Connection, known: Sequence[Migration] = MIGRATIONS) -> list[Migration]:
    """Steps this bank has not run, in order. Read-only."""
    done = set(applied(conn))
    return [step for step in known if step.name not in done]


def prepare(
    db: Database, now: datetime, *, upgrade: bool = False, known: Sequence[Migration] = MIGRATIONS
) -> list[str]:
    """Make a new bank, check an old one, upgrade it if asked; returns the steps that ran.

    Raises:
        StoreError, StoreVersionError: as :func:`check`; StoreError too if SQLite lacks FTS5.
    """
    # One process at a time: switching a new file to WAL fails at once, not after a timeout,
    # when another connection is there.
    with db.exclusive() as got:
        if not got:
            raise locked(db.place, db.timeout_s)
        with db.scope() as conn:
            db.require(conn)
            check(db, conn, known, upgrade=upgrade)
            if not pending(conn, known):
                db.bind(bank_id(conn), new=False)
                return []
        with db.scope(write=True) as conn:
            check(db, conn, known, upgrade=upgrade)  # another host may have been faster
            new = not applied(conn)
            done = apply_pending(conn, now, known)
            db.bind(bank_id(conn), new=new)
            return done


def bank_id(conn: Connection) -> str:
    """The random id that a bank gets when it is made."""
    return str(conn.scalar(select(models.meta.c.value).where(models.meta.c.key == "bank_id")))


def check(
    db: Database,
    conn: Connection,
    known: Sequence[Migration] = MIGRATIONS,
    *,
    upgrade: bool = False,
) -> None:
    """Refuse what this package cannot use as it is (or, with `upgrade`, cannot upgrade).

    Read-only; an empty database passes.

    Raises:
        StoreError: the database belongs to some other program.
        StoreVersionError: the bank is newer or older than this package.
    """
    place = db.place
    if db.contents(conn) == "other":
        raise db.foreign()
    done, names = applied(conn), [step.name for step in known]
    newer = [name for name in done if name not in names]
    if newer:
        raise StoreVersionError(
            f"The bank at {place} has schema {newer[-1]}, this memlong-agent knows only up to "
            f"{names[-1]}. Upgrade the package: pip install --upgrade memlong-agent."
        )
    if done and len(done) < len(names) and not upgrade:
        raise StoreVersionError(
            f"The bank at {place} has schema {done[-1]}, this memlong-agent needs {names[-1]}. "
            f"{db.upgrading()}"
        )


def apply_pending(
    conn: Connection, now: datetime, known: Sequence[Migration] = MIGRATIONS
) -> list[str]:
    """Run what is pending; the caller's transaction commits the steps with their records."""
    steps = pending(conn, known)
    for step in steps:
        step.apply(conn)
        record = {"number": step.number, "name": step.name, "applied_at": now}
        conn.execute(insert(models.migrations).values(record))
    return [step.name for step in steps]
