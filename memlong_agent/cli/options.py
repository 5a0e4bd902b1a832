"""The options that commands share, and what they open.

In: `--bank --database --model --embedder --device --timeout --key-file --json`, and `--user
--session` where memories are one user's. Out: one frozen :class:`Target`, the first argument of
the command.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from memlong_agent.memlong import MemLong, Memories

DEFAULT_SESSION = "default"
Command = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Target:
    """Which bank, which model, whose memories, and how to answer."""

    bank: str
    timeout_s: float
    json: bool
    database: str | None = field(default=None, repr=False)  # it may hold a password
    model: str | None = None
    embedder: str = "auto"
    device: str | None = None
    key_file: str | None = None
    user: str = "me"
    session: str | None = None  # None: not named by the user
    """Where `add` and `chat` write (default: "default"); the others take all when it is None."""

    @property
    def key(self) -> Path | None:
        """The file of the key; None: what the environment says."""
        return None if self.key_file is None else Path(self.key_file)

    def open(self) -> MemLong:
        """Model and bank, as the options say."""
        if self.model is None or Path(self.model).exists():
            # Nothing is downloaded, and weights on disk load faster than a bar can be read.
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from memlong_agent.memlong import MemLong

        return MemLong(
            self.model,
            self.bank,
            database=self.database,
            embedder=self.embedder,
            device=self.device,
            timeout_s=self.timeout_s,
            key=self.key,
        )

    def memories(self, opened: MemLong) -> Memories:
        """The user's memories; new ones belong to the session."""
        return opened.memories(user_id=self.user, session_id=self.session or DEFAULT_SESSION)


_SHARED = {
    "bank": click.option("--bank", metavar="DIR", default="./memory", envvar="MEMLONG_BANK",
                         show_default=True, show_envvar=True, help="Folder of the bank."),
    "database": click.option("--database", metavar="URL", envvar="MEMLONG_DATABASE",
                             show_envvar=True,
                             help="Keep the rows in this PostgreSQL database (postgresql+psycopg://"
                             "...), keys and values in the folder."),
    "model": click.option("--model", metavar="NAME", envvar="MEMLONG_MODEL", show_envvar=True,
                          help="Folder or Hugging Face name; default: the bundled memlong-tiny."),
    "embedder": click.option("--embedder", metavar="NAME", default="auto", show_default=True,
                             help="auto, minilm, lexical, or a sentence-transformers folder or "
                             "name."),
    "device": click.option("--device", metavar="NAME",
                           help="cpu, cuda, ...; default: cuda when present."),
    "timeout": click.option("--timeout", "timeout_s", metavar="SECONDS", default=30.0,
                            type=click.FloatRange(min=0), show_default=True,
                            help="How long to wait for a busy bank."),
    "key_file": click.option("--key-file", metavar="PATH",
                             help="Key of an encrypted bank, and of a new one that is to be; "
                             "default: MEMLONG_KEY, or the file MEMLONG_KEY_FILE names."),
    "json": click.option("--json", is_flag=True,
                         help="JSON on standard output, and nothing else."),
}  # fmt: skip
_OWNED = {
    "user": click.option("--user", metavar="NAME", default="me", show_default=True,
                         help="Whose memories."),
    "session": click.option("--session", metavar="NAME", show_default=DEFAULT_SESSION,
                            help="The conversation to go on with or to write to."),
    "narrow": click.option("--session", metavar="NAME", show_default="all",
                           help="Only what belongs to this conversation."),
}  # fmt: skip


def common(
    *owned: Literal["user", "session", "narrow"], without: Sequence[str] = ()
) -> Callable[[Command], Command]:
    """Give a command the shared options; it receives them as a :class:`Target`.

    `owned` adds `--user` and `--session`; with `narrow` no session means all of them. `without`
    names shared options that mean nothing to the command.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def gathered(**values: Any) -> None:
            names = [each.name for each in fields(Target) if each.name in values]
            command(Target(**{name: values.pop(name) for name in names}), **values)

        wrapped: Command = gathered
        shared = [option for name, option in _SHARED.items() if name not in without]
        for option in reversed([*shared, *(_OWNED[name] for name in owned)]):
            wrapped = option(wrapped)
        return wrapped

    return decorate
