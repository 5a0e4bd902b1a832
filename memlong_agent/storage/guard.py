"""Whose bank it is: claimed when it is opened, and compared again in every transaction.

In: what a process opened the bank with. Out: nothing, or an error that names what differs. Another
process may rebuild or encrypt the bank at any time; it then raises the bank's epoch in the same
transaction, and whoever has the bank open looks closer at the next thing it does.
"""

from __future__ import annotations

import json

from sqlalchemy import Connection, select

from memlong_agent.errors import IncompatibleMemoryError, StoreKeyError
from memlong_agent.identity import Identity
from memlong_agent.kv import KVSpec
from memlong_agent.storage import reads, sealing, writes
from memlong_agent.storage.database import Database
from memlong_agent.storage.kvfile import spec_to_json
from memlong_agent.storage.models import meta

REBUILD = "rebuild"
"""Row of meta that is there while the bank is being rebuilt."""
_READ_EPOCH = select(meta.c.value).where(meta.c.key == writes.EPOCH)
_NEVER = "never looked"


class Guard:
    """Refuses what a process wants of a bank that is not, or no longer, its own.

    Made for one open bank; called with the connection at the beginning of every transaction.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._epoch: str | None = _NEVER
        self._encoding: Identity | None = None
        self._retrieval: Identity | None = None

    def __call__(self, conn: Connection) -> None:
        """Raises IncompatibleMemoryError or StoreKeyError."""
        epoch = conn.scalar(_READ_EPOCH)
        if epoch != self._epoch:
            self._look(conn)
            self._epoch = epoch

    def claim(self, encoding: Identity, spec: KVSpec) -> None:
        """Record the model of a new bank, or check that this is the one that wrote it.

        A part that an older release did not record yet is recorded now.
        """
        mine = {"encoding": encoding.to_json(), "kv_spec": spec_to_json(spec)}
        theirs = self._recorded(mine)
        known = Identity.from_json(theirs["encoding"])
        found = encoding.differences(encoding.completing(known))
        if theirs["kv_spec"] != mine["kv_spec"]:
            found.append(f"K/V: {mine['kv_spec']} here, {theirs['kv_spec']} in the bank")
        if found:
            raise self._another_model("was encoded by another model", found)
        if set(encoding.parts) - set(known.parts):
            with self._db.scope(write=True) as conn:
                writes.set_meta(conn, "encoding", encoding.to_json())
        self._encoding = encoding

    def claim_retrieval(self, retrieval: Identity) -> None:
        """As :meth:`claim`, for the embedder that makes the vectors."""
        theirs = self._recorded({"retrieval": retrieval.to_json()})
        self._check_retrieval(retrieval, Identity.from_json(theirs["retrieval"]))
        self._retrieval = retrieval

    def _look(self, conn: Connection) -> None:
        check_seal(self._db, conn)
        check_whole(self._db, conn)
        encoding = reads.meta_value(conn, "encoding")
        if self._encoding is not None and encoding is not None:
            found = self._encoding.differences(Identity.from_json(encoding))
            if found:
                raise self._another_model("was rebuilt for another model", found)
        retrieval = reads.meta_value(conn, "retrieval")
        if self._retrieval is not None and retrieval is not None:
            self._check_retrieval(self._retrieval, Identity.from_json(retrieval))

    def _another_model(self, what: str, found: list[str]) -> IncompatibleMemoryError:
        return IncompatibleMemoryError(
            f"The bank at {self._db.place} {what}: {'; '.join(found)}. Open it with that model, or "
            "encode all of its text anew for this one: memlong rebuild "
            f"{self._db.options} --model NAME"
        )

    def _check_retrieval(self, mine: Identity, theirs: Identity) -> None:
        found = mine.differences(theirs)
        if found:
            raise IncompatibleMemoryError(
                f"The vectors in {self._db.place} come from another embedder: {'; '.join(found)}. "
                "Use that embedder, or make all vectors anew with this one (keys and values stay): "
                f"memlong rebuild --vectors {self._db.options} --embedder NAME"
            )

    def _recorded(self, mine: dict[str, str]) -> dict[str, str]:
        """What the bank says of these keys; what it does not say yet is recorded."""
        with self._db.scope() as conn:
            found = {key: reads.meta_value(conn, key) for key in mine}
        if None in found.values():
            with self._db.scope(write=True) as conn:
                for key, value in mine.items():
                    found[key] = reads.meta_value(conn, key)
                    if found[key] is None:
                        writes.set_meta(conn, key, value)
        return {key: found[key] or value for key, value in mine.items()}


def check_seal(db: Database, conn: Connection) -> None:
    """StoreKeyError if the bank was encrypted since it was opened here."""
    sealed = reads.meta_value(conn, sealing.ROW) is not None
    if sealed != db.cipher.sealed:
        raise StoreKeyError(
            f"The bank at {db.place} was encrypted since it was opened here. Open it again, with "
            "its key."
        )


def check_whole(db: Database, conn: Connection, *, but: str | None = None) -> None:
    """IncompatibleMemoryError if a rebuild is under way, or was interrupted; one of the kind `but`
    does not count.

    The bank is then half of one model and half of another, or lacks vectors.
    """
    running = reads.meta_value(conn, REBUILD)
    kind = None if running is None else json.loads(running)["kind"]
    if kind in (None, but):
        return
    command = f"memlong rebuild {db.options} --model NAME"
    if kind == "vectors":
        command = f"memlong rebuild --vectors {db.options} --embedder NAME"
    raise IncompatibleMemoryError(
        f"The bank at {db.place} is being rebuilt, or its rebuild was interrupted. Wait until it "
        f"is done, or run the same command again, which goes on where it stopped: {command}"
    )
