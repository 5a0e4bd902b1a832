"""`memlong upgrade` and `encrypt`: a bank is brought up to date, or given a key."""

from __future__ import annotations

from pathlib import Path

import click

from memlong_agent.cli.options import Target, common
from memlong_agent.cli.output import emit, plain, progress


@click.command(epilog="\b\nExample:\n  memlong upgrade --bank ./memory")
@common(without=("model", "embedder", "device", "key_file"))
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


@click.command(epilog="\b\nExample:\n  memlong encrypt --bank ./memory --key-file memory.key")
@common(without=("model", "embedder", "device"))
@click.option("--new-key-file", metavar="PATH", help="Give an encrypted bank this key instead.")
def encrypt(target: Target, new_key_file: str | None) -> None:
    """Encrypt a plain bank, or change the key of an encrypted one.

    Texts, vectors, keys and values are sealed, and what was plain is removed from the folder.
    Copies of the bank made elsewhere stay as they are. A lost key cannot be replaced: without it
    the bank is lost.
    """
    from memlong_agent.memlong import MemLong

    with progress("Encrypting", None) as show:
        done = MemLong.encrypt(
            target.bank,
            target.key,
            new_key=None if new_key_file is None else Path(new_key_file),
            database=target.database,
            timeout_s=target.timeout_s,
            on_progress=lambda chunks, _: show(chunks),
        )
    said = "has a new key" if new_key_file else "is encrypted" if done else "was encrypted already"
    if target.json:
        emit({"bank": target.bank, "changed": done})
    else:
        click.echo(f"The bank at {plain(target.bank)} {said}.")
