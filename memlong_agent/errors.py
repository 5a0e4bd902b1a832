"""Everything that can go wrong, as a tree. Every message ends with what to do.

MemLongError
├── ConfigError               a setting, an argument or an input text is wrong (also ValueError)
├── ContextOverflowError      prompt + max_tokens do not fit the window (also ValueError)
├── UnsupportedModelError     a model that cannot be found, loaded or given a memory
├── IncompatibleMemoryError   the bank was written by another model or embedder
├── MemoryNotFoundError       no memory with this id (also KeyError)
├── ArchiveError              an archive is damaged, hostile, or not for this bank
└── StoreError                the bank folder cannot be read or written
    ├── StoreVersionError     written by a newer or an older version of memlong-agent
    ├── StoreCorruptError     a file is damaged: names it, what was expected and what was found
    ├── StoreLockedError      another process kept the bank busy past the timeout
    └── StoreKeyError         an encrypted bank without its key, or with a wrong one
"""

from __future__ import annotations


class MemLongError(Exception):
    """Base of every error that memlong-agent raises on purpose."""


class ConfigError(MemLongError, ValueError):
    """A setting, an argument or an input text is wrong."""


class ContextOverflowError(MemLongError, ValueError):
    """Prompt and `max_tokens` together do not fit the window; both numbers are in the message."""


class UnsupportedModelError(MemLongError):
    """The model cannot be found, loaded or given a memory."""


class IncompatibleMemoryError(MemLongError):
    """The bank was written by another model, tokenizer, compute dtype or embedder."""


class MemoryNotFoundError(MemLongError, KeyError):
    """The owner has no memory with this id."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which would put quotes around the sentence.
        return str(self.args[0]) if self.args else ""


class StoreError(MemLongError):
    """The bank folder cannot be read or written."""


class StoreVersionError(StoreError):
    """The bank was written by a newer or an older version of memlong-agent."""


class StoreCorruptError(StoreError):
    """A file of the bank is damaged or missing."""


class StoreLockedError(StoreError):
    """Another process kept the bank busy past the timeout."""


class StoreKeyError(StoreError):
    """The bank is encrypted, and no key or a wrong one was given; or a key for a plain bank."""


class ArchiveError(MemLongError):
    """A file is not an archive of memories that this bank can take in; nothing was written."""
