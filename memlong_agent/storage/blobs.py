"""Where K/V files live: a folder, or a dict of the same bytes.

In: `KVChunk`s of one `KVSpec`. Out: a `BlobRef` for each, and the chunks again, checked.
It knows nothing of rows: which files are wanted is told to it, never decided here.
"""

from __future__ import annotations

import errno
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from memlong_agent.kv import KVChunk, KVSpec
from memlong_agent.storage import faults
from memlong_agent.storage.kvfile import (
    BlobRef,
    checked,
    checksum_of,
    damaged,
    encode,
    memory_of,
    sealed,
)
from memlong_agent.storage.seal import PLAIN, Cipher

# 64 files of 300 KB are read cold in 64, 22, 34 ms with one, four, eight threads and written
# durably in 400, 63, 39 ms. Four: they stay as long as the bank, and calls add no others that stay.
_THREADS = 4
# Handing a file to a thread costs more than reading a small one: 8 files of 16 KB take 0.65 instead
# of 1.6 ms warm, 2.0 instead of 2.4 cold. From 256 KB on threads win on a cold disk.
_SMALL_BYTES = 256 << 10
SUFFIX = ".safetensors"
T = TypeVar("T")
R = TypeVar("R")


class BlobStore(Protocol):
    """Where K/V live. Thread-safe. Raises StoreError when the medium fails."""

    cipher: Cipher
    """Of the bank; put in when the bank is unlocked, before the first chunk."""

    def publish(self, spec: KVSpec, chunks: Sequence[KVChunk]) -> list[BlobRef]:
        """Make all chunks durable, or none. ConfigError if a chunk is not of `spec`."""
        ...

    def read_many(self, spec: KVSpec, refs: Sequence[BlobRef]) -> list[KVChunk]:
        """Chunks in the order asked. StoreCorruptError if one is missing or damaged."""
        ...

    def remove(self, blob_ids: Iterable[str]) -> None:
        """Durably; ids that are gone already are no error."""
        ...

    def touch(self, blob_ids: Iterable[str]) -> None:
        """Make published files young again: their rows will come, the sweep must wait. StoreError
        if one is gone."""
        ...

    def strays(self, known: Callable[[str], set[str]], grace_s: float) -> list[Path]:
        """Files without a row whose time is `grace_s` or more from now, on either side;
        `known("ab")` = ids with rows, by prefix."""
        ...

    def drop(self, strays: Sequence[Path]) -> None: ...

    def close(self) -> None: ...


class FileBlobs:
    """`<bank>/kv/<aa>/<blob id>.safetensors`, files 0600, folders 0700."""

    def __init__(self, bank: Path) -> None:
        self.folder = bank
        self._kv = bank / "kv"
        self.cipher: Cipher = PLAIN
        self._pin = torch.cuda.is_available()
        self._pool: ThreadPoolExecutor | None = None
        self._pool_pid = 0
        self._pool_lock = threading.Lock()

    def path_of(self, blob_id: str) -> Path:
        return self._kv / blob_id[:2] / f"{blob_id}{SUFFIX}"

    def publish(self, spec: KVSpec, chunks: Sequence[KVChunk]) -> list[BlobRef]:
        files = [(secrets.token_hex(16), chunk) for chunk in chunks]
        with self._translated():
            try:
                self._make_folders({blob_id[:2] for blob_id, _ in files})
                refs = self._each(lambda file: self._write(spec, *file), files)
                for ref in refs:
                    path = self.path_of(ref.blob_id)
                    os.rename(path.with_suffix(".tmp"), path)
                self._sync_folders(ref.blob_id for ref in refs)
            except BaseException:
                for blob_id, _ in files:
                    for path in (self.path_of(blob_id), self.path_of(blob_id).with_suffix(".tmp")):
                        with suppress(OSError):
                            os.unlink(path)
                raise
        return refs

    def read_many(self, spec: KVSpec, refs: Sequence[BlobRef]) -> list[KVChunk]:
        with self._translated():
            if all(ref.nbytes < _SMALL_BYTES for ref in refs):
                return [self._read(spec, ref) for ref in refs]
            return self._each(lambda ref: self._read(spec, ref), refs)

    def remove(self, blob_ids: Iterable[str]) -> None:
        ids = list(blob_ids)
        with self._translated():
            for blob_id in ids:
                with suppress(FileNotFoundError):
                    os.unlink(self.path_of(blob_id))
            self._sync_folders(ids)

    def touch(self, blob_ids: Iterable[str]) -> None:
        with self._translated():
            for blob_id in blob_ids:
                os.utime(self.path_of(blob_id))

    def strays(self, known: Callable[[str], set[str]], grace_s: float) -> list[Path]:
        found: list[Path] = []
        with self._translated():
            for folder in sorted(filter(Path.is_dir, self._kv.iterdir())):
                # Files first, rows second: a file whose row commits in between is known.
                paths = [p for p in folder.iterdir() if p.suffix in (SUFFIX, ".tmp")]
                rows = known(folder.name)
                lost = [p for p in paths if p.suffix == ".tmp" or p.stem not in rows]
                found += [path for path in lost if _distance_s(path) >= grace_s]
        return found

    def drop(self, strays: Sequence[Path]) -> None:
        with self._translated():
            for path in strays:
                with suppress(FileNotFoundError):
                    os.unlink(path)
            self._sync_folders(path.name for path in strays)

    def close(self) -> None:
        with self._pool_lock:
            if self._pool is not None and self._pool_pid == os.getpid():
                self._pool.shutdown()
            self._pool = None

    def _write(self, spec: KVSpec, blob_id: str, chunk: KVChunk) -> BlobRef:
        parts = sealed(self.cipher, blob_id, encode(spec, chunk))
        path = self.path_of(blob_id).with_suffix(".tmp")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, parts)
            if sys.platform == "darwin":
                os.fsync(fd)
            else:
                os.fdatasync(fd)
        finally:
            os.close(fd)
        nbytes = sum(part.nbytes for part in parts)
        return BlobRef(blob_id, chunk.tokens, nbytes, checksum_of(parts))

    def _read(self, spec: KVSpec, ref: BlobRef) -> KVChunk:
        path = self.path_of(ref.blob_id)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise damaged(str(path), f"{ref.nbytes} bytes", "no file") from None
        try:
            size = os.fstat(fd).st_size
            if size != ref.nbytes:
                raise damaged(str(path), f"{ref.nbytes} bytes", f"{size} bytes")
            pin = self._pin and not self.cipher.sealed  # what is sealed is not sent to a device
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pin)
            target, done = memory_of(buffer), 0
            while done < size:
                got = os.preadv(fd, [target[done:]], done)
                if got == 0:
                    raise damaged(str(path), f"{ref.nbytes} bytes", f"{done} bytes")
                done += got
        finally:
            os.close(fd)
        return checked(spec, ref, str(path), buffer, self.cipher, pin=self._pin)

    def _make_folders(self, names: Iterable[str]) -> None:
        made = 0
        for name in names:
            with suppress(FileExistsError):
                os.mkdir(self._kv / name, 0o700)
                made += 1
        if made:
            _sync_folder(self._kv)

    def _sync_folders(self, blob_ids: Iterable[str]) -> None:
        # In parallel: the file system then commits several with one write to its journal.
        self._each(_sync_folder, [self._kv / name for name in {each[:2] for each in blob_ids}])

    def _each(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        if len(items) < 4:
            return [work(item) for item in items]
        futures: list[Future[R]] = [self._workers().submit(work, item) for item in items]
        # All of them, even after a failure: the caller's clean-up must find nobody still writing.
        wait(futures)
        return [future.result() for future in futures]

    def _workers(self) -> ThreadPoolExecutor:
        with self._pool_lock:
            if self._pool is None or self._pool_pid != os.getpid():  # threads do not survive fork
                self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="memlong-blobs")
                self._pool_pid = os.getpid()
            return self._pool

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise faults.from_os(exc, str(self.folder)) from exc


class MemoryBlobs:
    """The same bytes in a dict, for `bank=":memory:"`; gone with the process, so never stray."""

    def __init__(self) -> None:
        self.cipher: Cipher = PLAIN
        self._files: dict[str, bytes] = {}

    def publish(self, spec: KVSpec, chunks: Sequence[KVChunk]) -> list[BlobRef]:
        refs: list[BlobRef] = []
        files: dict[str, bytes] = {}
        for chunk in chunks:
            blob_id = secrets.token_hex(16)
            parts = sealed(self.cipher, blob_id, encode(spec, chunk))
            data = b"".join(parts)
            files[blob_id] = data
            refs.append(BlobRef(blob_id, chunk.tokens, len(data), checksum_of(parts)))
        self._files.update(files)
        return refs

    def read_many(self, spec: KVSpec, refs: Sequence[BlobRef]) -> list[KVChunk]:
        return [self._read(spec, ref) for ref in refs]

    def _read(self, spec: KVSpec, ref: BlobRef) -> KVChunk:
        data = self._files.get(ref.blob_id)
        if data is None:
            raise damaged(ref.blob_id, f"{ref.nbytes} bytes", "nothing")
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return checked(spec, ref, ref.blob_id, buffer, self.cipher)

    def remove(self, blob_ids: Iterable[str]) -> None:
        for blob_id in blob_ids:
            self._files.pop(blob_id, None)

    def touch(self, blob_ids: Iterable[str]) -> None:
        return None

    def strays(self, known: Callable[[str], set[str]], grace_s: float) -> list[Path]:
        return []

    def drop(self, strays: Sequence[Path]) -> None:
        return None

    def close(self) -> None:
        self._files.clear()


def _write_all(fd: int, parts: Sequence[memoryview]) -> None:
    # writev may stop early (a signal, a quota, 2 GiB); Python itself repeats after EINTR.
    left = [part.cast("B") for part in parts if part.nbytes]
    while left:
        done = os.writev(fd, left)
        if done == 0:
            raise OSError(errno.EIO, "the disk accepted no bytes")
        while left and done >= left[0].nbytes:
            done -= left.pop(0).nbytes
        if left:
            left[0] = left[0][done:]


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _distance_s(path: Path) -> float:
    # The file system's clock, not the bank's: an injected clock says nothing about files. It may
    # have been put back since.
    try:
        return abs(time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return -1.0
