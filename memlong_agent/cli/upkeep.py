"""`memlong upgrade`, `rebuild`, `encrypt`: a bank's schema, its model, its key."""

from __future__ import annotations

from pathlib import Path

import click

from memlong_agent.cli.options import Target, common
from memlong_agent.cli.output import counted, emit, plain, progress


@click.command(epilog="\b\nExample:\n  memlong upgrade --bank ./memory")
@common(without=("model", "embedder", "device", "key_file"))
@click.option("--backed-up", is_flag=True, help="Rows in PostgreSQL: say that you dumped them.")
def upgrade(target: Target, backed_up: bool) -> None:
    """Bring a bank of an older version up to date.

    A copy of bank.sqlite is made first, in the bank's folder. It is deleted as soon as anything is
    forgotten, changed or over: keep one elsewhere if you want it longer. Rows in PostgreSQL cannot
    be copied here: dump them (pg_dump), then pass --backed-up. All steps are done or none; keys and
    values are not touched. A bank of a newer version is refused.
    """
    from memlong_agent.memlong import MemLong

    done = MemLong.upgrade(
        target.bank, database=target.database, backed_up=backed_up, timeout_s=target.timeout_s
    )
    backup = None if done.backup is None else str(done.backup)
    if target.json:
        emit({"bank": target.bank, "before": done.before, "steps": done.steps, "backup": backup})
    elif not done.steps:
        click.echo(f"The bank at {plain(target.bank)} is up to date ({done.before}).")
    else:
        click.echo(f"Upgraded {plain(target.bank)}: {', '.join(done.steps)}.")
    if backup is not None and not target.json:
        click.echo(f"As it was before: {plain(backup)}")
        click.echo("It holds all remembered text. Therefore it is deleted as soon as anything is")
        click.echo("forgotten, changed or expires, even when the bank is opened: copy it elsewhere")
        click.echo("now if you want it longer, and delete it once the bank works.")


@click.command(epilog="\b\nExample:\n  memlong rebuild --model ./new-model\n"
               "  memlong rebuild --vectors --embedder minilm")  # fmt: skip
@common()
@click.option("--vectors", is_flag=True, help="Make the vectors anew, not the keys and values.")
@click.option("--chunk-tokens", metavar="N", type=int, help="Cut all text anew, N tokens a chunk.")
def rebuild(target: Target, vectors: bool, chunk_tokens: int | None) -> None:
    """Encode a bank's text anew, for another model or to repair it.

    Nothing that was remembered changes: ids, texts, times and counters stay. With --vectors only
    the vectors are made anew, for another --embedder. The bank cannot be used meanwhile. When it
    is interrupted, the same command goes on where it stopped.
    """
    if vectors and chunk_tokens is not None:
        raise click.UsageError("--chunk-tokens cuts text for keys and values: leave out --vectors.")
    from memlong_agent.memlong import MemLong

    with progress("Rebuilding", 1) as show:
        done = MemLong.rebuild(
            target.model,
            target.bank,
            database=target.database,
            vectors=vectors,
            embedder=target.embedder,
            chunk_tokens=chunk_tokens,
            device=target.device,
            timeout_s=target.timeout_s,
            key=target.key,
            on_progress=lambda now, total: show(now / max(1, total)),
        )
    if target.json:
        emit({"bank": target.bank, **done.model_dump(mode="json")})
        return
    more = " (the rest of an interrupted rebuild)" if done.resumed else ""
    counts = f"{counted(done.memories, 'memory')}, {counted(done.chunks, 'chunk')}"
    click.echo(f"Rebuilt {plain(target.bank)}: {counts}{more}.")
    for change in done.changes:
        click.echo(f"  {plain(change)}".replace(" here,", " now,").replace("in the bank", "before"))


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
