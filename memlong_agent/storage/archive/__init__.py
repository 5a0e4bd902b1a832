"""Archives: all memories of an owner or of a tenant in one file, and back into a bank.

In: a bank, a path. Out: a ZIP of JSON lines and safetensors, or memories under their old ids. An
archive is plain text and plain tensors, also that of an encrypted bank.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection

from memlong_agent.errors import ArchiveError, ConfigError, IncompatibleMemoryError
from memlong_agent.identity import Identity
from memlong_agent.storage import faults, reads
from memlong_agent.storage.archive.export import Export
from memlong_agent.storage.archive.manifest import Manifest, compare, spec_values
from memlong_agent.storage.archive.restore import Bank, Counted, Embed, Encode, Restore
from memlong_agent.storage.archive.scratch import Scratch
from memlong_agent.storage.archive.verify import Tokenize, Verifier, manifest_of
from memlong_agent.storage.archive.zipped import read_bytes, read_entries
from memlong_agent.storage.base import Owner
from memlong_agent.storage.blobs import BlobStore
from memlong_agent.storage.database import Database
from memlong_agent.storage.kvfile import spec_from_json
from memlong_agent.storage.lexical import Lexical

__all__ = ["Archives", "Counted", "Embed", "Encode", "Manifest", "Progress", "Tokenize"]

Progress = Callable[[float], None]
"""Called with the share that is done, 0 to 1."""
_VERIFIED, _PUBLISHED = 0.4, 0.9  # shares of a restore


def _ignored(done: float) -> None:
    return None


class Archives:
    """Exports and restores of one bank."""

    def __init__(
        self,
        db: Database,
        blobs: BlobStore,
        lexical: Lexical,
        clock: Callable[[], datetime],
        secret: str,
    ) -> None:
        """`secret` is that of the bank's text digests."""
        self._db, self._blobs, self._lexical, self._clock = db, blobs, lexical, clock
        self._secret = secret

    def export(
        self,
        path: Path,
        *,
        tenant: str,
        owner: Owner | None = None,
        dimensions: int,
        progress: Progress = _ignored,
    ) -> Manifest:
        """Write the memories of one owner, or of a tenant, as they are at one moment.

        Args:
            dimensions: Of the bank's vectors; 0 without.

        Raises:
            ArchiveError: there is something at `path`, or it cannot be written.
            StoreError: the bank cannot be read; StoreLockedError if it never stood still.
        """
        about = self._about(tenant, dimensions)
        export = Export(self._db, self._blobs, about.spec, about, self._clock())
        return export.write(path, owner, progress)

    def restore(
        self,
        path: Path,
        *,
        tenant: str,
        dimensions: int,
        tokenize: Tokenize | None = None,
        encode: Encode | None = None,
        embed: Embed | None = None,
        max_memories: int | None = None,
        max_text_bytes: int | None = None,
        progress: Progress = _ignored,
    ) -> Counted:
        """Take in an archive: all of it, or nothing.

        Args:
            dimensions: Of the bank's vectors; 0 without.
            tokenize: The model's; token ids must be those of the text. Unused with `encode`.
            encode: Makes K/V and vectors of each memory anew, for an archive of another model.
            embed: Makes vectors of each item anew; needed with `encode`.
            max_memories: Most memories of one owner afterwards.
            max_text_bytes: Most bytes of the text of one memory.

        Raises:
            ArchiveError: the file is no archive, damaged or hostile, or collides with the bank.
            IncompatibleMemoryError: another model or embedder wrote it; names each difference.
            StoreError: the bank cannot be written.
        """
        mine = self._about(tenant, dimensions)
        with _opened(path) as (fd, size), Scratch(path.parent) as scratch:
            entries = read_entries(fd, size)
            theirs = manifest_of(fd, entries)
            compare(mine, theirs, encode=encode is not None)
            verifier = Verifier(fd, theirs, scratch, None if encode else tokenize, max_text_bytes)
            verifier.run(entries[:-1], lambda done: progress(done * _VERIFIED))
            span = _PUBLISHED - _VERIFIED
            counted = Restore(self._bank(mine, max_memories), scratch).run(
                lambda at, size: read_bytes(fd, at, size),
                encode,
                embed,
                lambda done: progress(_VERIFIED + done * span),
            )
            progress(1.0)
            return counted

    def _about(self, tenant: str, dimensions: int) -> Manifest:
        with self._db.scope() as conn:
            found = {key: reads.meta_value(conn, key) for key in _CLAIMS}
        if found["encoding"] is None or found["kv_spec"] is None:
            raise ConfigError(f"The bank at {self._db.place} belongs to no model yet. Claim it.")
        retrieval = Identity.from_json(found["retrieval"] or "{}")
        return Manifest(
            tenant=tenant,
            created_at=self._clock().isoformat(),
            encoding=dict(Identity.from_json(found["encoding"]).parts),
            retrieval=dict(retrieval.parts),
            kv=spec_values(spec_from_json(found["kv_spec"])),
            dimensions=dimensions,
            counts={},
            parts={},
            checksums=[],
        )

    def _bank(self, mine: Manifest, max_memories: int | None) -> Bank:
        def guard(conn: Connection) -> None:
            found = Identity.from_json(reads.meta_value(conn, "encoding") or "{}")
            if dict(found.parts) != mine.encoding:
                raise IncompatibleMemoryError(
                    f"The bank at {self._db.place} was given another model meanwhile. Open it anew."
                )

        return Bank(
            db=self._db,
            blobs=self._blobs,
            lexical=self._lexical,
            spec=mine.spec,
            tenant=mine.tenant,
            secret=self._secret,
            now=self._clock(),
            guard=guard,
            max_memories=max_memories,
        )


_CLAIMS = ("encoding", "kv_spec", "retrieval")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """Descriptor and size of a regular file; ArchiveError for anything else."""
    try:
        # Not to wait for a pipe that nobody writes into.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise faults.from_archive(exc, repr(str(path))) from exc
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ArchiveError(f"{path} is not a file. Give the path of an archive.")
        yield fd, status.st_size
    except (OSError, sqlite3.Error) as exc:
        raise faults.from_archive(exc, str(path)) from exc
    finally:
        os.close(fd)
