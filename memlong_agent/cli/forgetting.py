"""`memlong forget`: the one command that removes."""

from __future__ import annotations

import click

from memlong_agent.cli.options import Target, common
from memlong_agent.cli.output import counted, emit, plain


@click.command(epilog="\b\nExample:\n  memlong forget 0f3c5a...\n  memlong forget --all --user me")
@common("user", "narrow")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All memories of the user or session.")
@click.option("--yes", is_flag=True, help="Do not ask before --all.")
def forget(target: Target, ids: tuple[str, ...], everything: bool, yes: bool) -> None:
    """Forget memories by ID, or --all of them.

    Their text, vectors, keys and values are deleted. When one ID is unknown, nothing is forgotten.
    `memlong list` shows the IDs.
    """
    if bool(ids) == everything:
        raise click.UsageError("Give one ID or more, or --all.")
    if everything and not yes:
        _confirm(target)
    with target.open() as ml:
        memories = target.memories(ml)
        if everything:
            forgotten = memories.clear(session_id=target.session)
        else:
            forgotten = memories.delete(ids)
    if target.json:
        emit({"forgotten": forgotten})
    else:
        click.echo(f"Forgot {counted(forgotten, 'memory')}.")


def _confirm(target: Target) -> None:
    where = f" in session {target.session!r}" if target.session else ""
    question = f"Forget all memories of {target.user!r}{where}, bank {target.bank}?"
    if not click.confirm(plain(question), err=True):
        click.echo("Nothing was forgotten.", err=True)
        raise click.exceptions.Exit(1)
