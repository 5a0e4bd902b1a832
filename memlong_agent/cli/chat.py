"""`memlong chat`: a conversation in the terminal, or line by line from a pipe.

In: lines. Out: the reply as it is made, or one JSON object a turn. Ctrl-C ends the running reply,
which then leaves no trace; at a terminal a mistake is explained and the conversation goes on, in a
pipe it ends the command. Knows no prompt and no bank: a line is one call of the session.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from memlong_agent.cli.files import not_utf8, stdin_lines
from memlong_agent.cli.forgetting import record, tell
from memlong_agent.cli.options import DEFAULT_SESSION, Target, common
from memlong_agent.cli.output import emit, fail, memory_table, note, plain, recall_table
from memlong_agent.errors import ConfigError, MemLongError

if TYPE_CHECKING:
    from memlong_agent.memlong import Session
    from memlong_agent.records import Memory, Recall, Reply

_HELP = """\
/recalls    what the last reply recalled, from when, and the attention it got
/memories   the newest 50 memories
/forget ID  forget one memory
/help       this page
/quit       leave (as Ctrl-D does); Ctrl-C ends the running reply"""

_LISTED = 50


@click.command(epilog="\b\nExample:\n  memlong chat --user anna\n  memlong chat < questions.txt")
@common("user", "session")
@click.option("--no-memory", is_flag=True, help="Recall nothing.")
@click.option("--no-write", is_flag=True, help="Remember nothing of what is said.")
@click.option("--system", metavar="TEXT", default="", help="A system prompt.")
@click.option("--max-tokens", metavar="N", type=int, help="Most tokens of a reply; default: 256.")
@click.option("--temperature", metavar="X", type=float, help="0, the default, is greedy.")
@click.option("--seed", metavar="N", type=int, help="Of the sampling above temperature 0.")
def chat(target: Target, no_memory: bool, no_write: bool, system: str, **sampling: Any) -> None:
    """Talk with a model that remembers; /help inside tells more.

    Replies appear as they are made. Standard input may be a pipe: each line is a turn. With --json
    every turn is one object a line.
    """
    from memlong_agent.config import Sampling

    # Checked before a model is loaded; without the values that were not given.
    given = {name: value for name, value in sampling.items() if value is not None}
    Sampling(**given)
    with target.open() as ml:
        session = ml.session(target.session or DEFAULT_SESSION, target.user, system=system)
        options = {"memory": not no_memory, "write": not no_write, **given}
        Conversation(session, options, target.json).run()


@dataclass(slots=True)
class Conversation:
    """One session at one terminal."""

    session: Session
    options: dict[str, Any]
    json: bool
    last: Reply | None = None

    def run(self) -> None:
        """Until /quit or the end of input."""
        people = sys.stdin.isatty() and not self.json
        for line in _typed() if people else stdin_lines():
            try:
                if line.strip() == "/quit":
                    return
                if line.strip():
                    self.turn(line.strip())
            except MemLongError as exc:
                if not people:
                    raise
                fail(str(exc))

    def turn(self, line: str) -> None:
        """A command if the line begins with a slash, else something said."""
        if not line.startswith("/"):
            self.say(line)
            return
        name, _, argument = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/recalls": self.recalls,
            "/memories": self.memories,
            "/forget": self.forget,
            "/help": lambda _: note(_HELP),
        }
        if name not in commands:
            raise ConfigError(f"There is no command {name}. Type /help to see them all.")
        commands[name](argument.strip())

    def say(self, text: str) -> None:
        """One turn, shown while it is made; Ctrl-C cancels it."""
        stream = self.session.stream(text, **self.options)
        try:
            for piece in _without_lead(stream):
                if not self.json:
                    click.echo(plain(piece), nl=False)
        except KeyboardInterrupt:
            stream.close()
            note("\n(cancelled)")
            return
        self.last = stream.reply
        if self.json:
            emit(self.last.model_dump(mode="json"))
        else:
            click.echo()

    def recalls(self, _: str) -> None:
        """What the last reply recalled."""
        found = self.last.recalled if self.last else ()
        self._show("recalled", found, recall_table, "The last reply recalled nothing.")

    def memories(self, _: str) -> None:
        """The newest memories of the user."""
        found = self.session.memories.list(limit=_LISTED)
        self._show("memories", found, memory_table, "There are no memories.")

    def forget(self, ids: str) -> None:
        """Forget one memory or several, all or none."""
        if not ids:
            raise ConfigError("Forget which memory? Type /forget ID; /memories shows the IDs.")
        forgotten = self.session.memories.delete(ids.split())
        if self.json:
            emit(record(forgotten))
        else:
            tell(forgotten, "/forget")

    def _show(
        self,
        name: str,
        found: Sequence[Recall] | Sequence[Memory],
        draw: Callable[[Any], None],
        nothing: str,
    ) -> None:
        if self.json:
            emit({name: [each.model_dump(mode="json") for each in found]})
        elif found:
            draw(found)
        else:
            click.echo(nothing)


def _typed() -> Iterator[str]:
    """Lines as people type them; Ctrl-D ends, Ctrl-C gives a fresh line."""
    with suppress(ImportError):  # editing and history, where Python has them
        import readline  # noqa: F401
    note("Type /help for commands, Ctrl-D to leave.")
    while True:
        try:
            yield input("> ")
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            note("\n(Ctrl-D leaves)")
        except UnicodeDecodeError as exc:
            fail(str(not_utf8("The line", exc.start)))


def _without_lead(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces without the blanks before the first word."""
    begun = False
    for piece in pieces:
        shown = piece if begun else piece.lstrip()
        begun = begun or bool(shown)
        yield shown
