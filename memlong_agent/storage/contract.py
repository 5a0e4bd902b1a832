"""What every bank promises, whatever holds its rows and files; written once, here.

`memlong_agent.testing.StorageContract` tests it on a back end.
"""

from __future__ import annotations

from abc import abstractmethod

from memlong_agent.closing import Closing


class StorageBase(Closing):
    """A bank. It takes owners, memories cut into chunks with K/V and vectors, and gives the same
    back, as plain frozen records. It knows no model, no embedder and no vector index; text is the
    truth, the rest is derived from it.

    In every case
    * One call is one transaction: all of it, or nothing that another call can see. Exceptions say
      so: a delete whose files resist (the rows are gone, the sweep takes the files), and a commit
      that the disk neither confirms nor lets be undone.
    * Reading changes nothing. A record that was returned never changes afterwards; K/V tensors are
      the caller's own.
    * Owners are strangers: no call that is given an owner reads, ranks by or counts another's rows.
    * A bank belongs to one model and one embedder; another is refused, with the difference named.
    * Texts, names and JSON come back as they were given. What cannot be kept is a ConfigError
      before anything is written: a NUL character, half a surrogate pair.
    * Datetimes are aware and in UTC, to the microsecond.

    After a crash (of a thread, the process or, where the disk and the server keep their word, the
    machine)
    * What a call has returned is there. Of the call that was cut off all is there, or nothing.
    * Never a row without its file: a K/V file is durable before its row, and outlives its row. What
      a crash leaves behind (files without rows, pending turns) is swept once its time is more than
      the grace period from now, on either side.
    * A damaged or missing file is a StoreCorruptError that names it, never other K/V.

    Between threads and processes
    * All calls may be made from any thread, of any process that opened the bank; a forked child may
      go on using a bank in a folder. A bank in memory is its process's own.
    * One writer at a time. Others wait, at most `timeout_s`, then StoreLockedError. Nobody's write
      is lost. Readers wait for nobody (but for a purge on PostgreSQL), and see one state.
    * What was committed is seen by every call that begins afterwards, in every process. Chunk keys
      (`pk`) and event numbers (`seq`) rise in the order of the commits and are never used twice, so
      whoever replays events after the last one seen misses none.

    Whatever the clock says, when it jumps and when processes disagree about it
    * Nothing is lost but memories and items that end by themselves: they end for good when a
      process reads a time at or after their end, be it a wrong one. A write may raise StoreError,
      and is not there then, when meanwhile a sweep takes its files for left behind.
    * Keys, events and what was written last in a session follow the commits. Lists by time, the
      order of what is recalled and eviction by age follow the times that the clock gave.

    After a deletion (delete, forget, clear, erase, expire, update, replace, eviction, a discarded
    turn)
    * No call finds the memory any more: not by id, key, word or vector, in no process. It does not
      come back after a crash. Its K/V files are unlinked before the call returns.
    * After a purge no byte of it is in the files of the bank: rows, word index, rearranged pages,
      write-ahead log and upgrade's backups of SQLite; tables, indexes and statistics of PostgreSQL.
      Deleting, forgetting, clearing, erasing and updating purge by themselves unless told not to;
      what has expired, was replaced or evicted leaves its last bytes to the next purge.
    * `times_forgotten` rises in the same transaction (but not for what was replaced, evicted or
      discarded), so that no process keeps a conversation that shows what was forgotten. What a turn
      that still runs had recalled before, it may repeat.

    Not promised
    * Order between two writers that overlap, except that one is wholly before the other.
    * A turn that stays pending longer than the grace period, by the clock of any process: that
      process may sweep its rows.
    * Copies that the bank does not keep: blocks of unlinked files on the medium, snapshots,
      backups, swap, PostgreSQL's own write-ahead log (`pg_wal` keeps texts until its segments are
      used again), its archives and replicas.
    * A bank on a network file system whose locks do not hold; a folder that is used by SQLite of
      other programs; two copies of one folder over one PostgreSQL schema.
    """

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections; a bank in memory is gone. Calls after this raise
        StoreError."""
