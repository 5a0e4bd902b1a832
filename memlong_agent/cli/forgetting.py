"""`memlong forget`: the one command that removes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from memlong_agent.cli.options import Target, common
from memlong_agent.cli.output import counted, emit, plain

if TYPE_CHECKING:
    from memlong_agent.records import Forgotten


@click.command(
    epilog="\b\nExample:\n  memlong forget 0f3c5a...\n"
    '  memlong forget --text "the old address"\n  memlong forget --all --user me'
)
@common("user", "narrow")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--text", metavar="TEXT", help="Every memory of the user that contains TEXT.")
@click.option("--all", "everything", is_flag=True, help="All memories of the user or session.")
@click.option("--owner", is_flag=True, help="All of the user, and the user's name itself.")
@click.option("--yes", is_flag=True, help="Do not ask before --text, --all or --owner.")
@click.option(
    "--no-purge", is_flag=True, help="Leave the last bytes in the database to memlong doctor."
)
def forget(
    target: Target,
    ids: tuple[str, ...],
    text: str | None,
    everything: bool,
    owner: bool,
    yes: bool,
    no_purge: bool,
) -> None:
    """Forget memories: by ID, by the TEXT they contain, or --all of them.

    Their text, vectors, keys and values are deleted, and no byte of them stays in the bank. When
    one ID is unknown, nothing is forgotten. `memlong list` shows the IDs. What is printed at the
    end are the IDs of exchanges that had recalled what is forgotten, and may repeat it.
    """
    if [bool(ids), text is not None, everything, owner].count(True) != 1:
        raise click.UsageError("Give one ID or more, --text, --all or --owner.")
    if target.session and (text is not None or owner):
        raise click.UsageError("--session narrows --all only. Leave it out.")
    if not (ids or yes):
        _confirm(target, text, owner)
    with target.open() as ml:
        memories = target.memories(ml)
        if text is not None:
            forgotten = memories.forget(text=text, purge=not no_purge)
        elif everything:
            forgotten = memories.clear(session_id=target.session, purge=not no_purge)
        elif owner:
            forgotten = memories.erase(purge=not no_purge)
        else:
            forgotten = memories.delete(ids, purge=not no_purge)
    if target.json:
        emit(record(forgotten))
    else:
        tell(forgotten)


def record(forgotten: Forgotten) -> dict[str, object]:
    """What was forgotten, for programs."""
    return {"forgotten": forgotten.memories, "mentions": list(forgotten.mentions)}


def tell(forgotten: Forgotten, command: str = "memlong forget") -> None:
    """What was forgotten, for people; `command` forgets more."""
    click.echo(f"Forgot {counted(forgotten.memories, 'memory')}.")
    if forgotten.mentions:
        exchanges = counted(len(forgotten.mentions), "exchange")
        click.echo(f"Recalled in {exchanges} that may repeat it; to forget them too:")
        click.echo(f"  {command} {' '.join(forgotten.mentions)}")


def _confirm(target: Target, text: str | None, owner: bool) -> None:
    where = f" in session {target.session!r}" if target.session else ""
    which = "every memory" if text is not None else "all memories"
    holding = "" if text is None else f" that contains {text!r}"
    name = ", the name too" if owner else ""
    question = f"Forget {which} of {target.user!r}{where}{holding}{name}, bank {target.bank}?"
    if not click.confirm(plain(question), err=True):
        click.echo("Nothing was forgotten.", err=True)
        raise click.exceptions.Exit(1)
