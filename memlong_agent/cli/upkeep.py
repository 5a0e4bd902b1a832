"""`memlong upgrade`: an older bank is brought up to date."""

from __future__ import annotations

import click

from memlong_agent.cli.options import Target, common
from memlong_agent.cli.output import emit, plain


@click.command(epilog="\b\nExample:\n  memlong upgrade --bank ./memory")
@common(without=("model", "embedder", "device"))
def upgrade(target: Target) -> None:
    """Bring a bank of an older version up to date.

    A copy of bank.sqlite is made first, in the bank's folder. All steps are done or none; keys and
    values are not touched. A bank of a newer version is refused. Of a database in PostgreSQL no
    copy is made: dump it first.
    """
    from memlong_agent.memlong import MemLong

    done = MemLong.upgrade(target.bank, database=target.database, timeout_s=target.timeout_s)
    backup = None if done.backup is None else str(done.backup)
    if target.json:
        emit({"bank": target.bank, "before": done.before, "steps": done.steps, "backup": backup})
    elif not done.steps:
        click.echo(f"The bank at {plain(target.bank)} is up to date ({done.before}).")
    else:
        click.echo(f"Upgraded {plain(target.bank)}: {', '.join(done.steps)}.")
    if backup is not None and not target.json:
        click.echo(f"As it was before: {plain(backup)}. It holds all remembered text: delete it")
        click.echo("once the bank works. Forgetting deletes it too.")
