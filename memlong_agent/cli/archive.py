"""`memlong export` and `import`: a bank's memories in one file, and back."""

from __future__ import annotations

import click

from memlong_agent.cli.options import Target, common
from memlong_agent.cli.output import counted, emit, plain, progress, size, table


@click.command(
    epilog="\b\nExample:\n  memlong export me.memlong --user me\n  memlong export all.memlong"
)
@common()
@click.argument("file", type=click.Path())
@click.option(
    "--user", "user_id", metavar="NAME", show_default="all", help="Only this user's memories."
)
@click.option(
    "--session", "session_id", metavar="NAME", help="Only those of this session without a user."
)
def export(target: Target, file: str, user_id: str | None, session_id: str | None) -> None:
    """Write memories into FILE, a new archive.

    It is a ZIP of JSON lines and safetensors that `memlong import` reads. It is plain text, also
    that of an encrypted bank: keep it as you keep the key.
    """
    with target.open() as ml, progress(f"Exporting to {file}", 1) as show:
        done = ml.export(file, user_id=user_id, session_id=session_id, on_progress=show)
    if target.json:
        emit(done.model_dump(mode="json"))
        return
    rows = [("Memories", f"{done.memories:,}"), ("Chunks", f"{done.chunks:,}")]
    rows += [("Tokens", f"{done.tokens:,}"), ("Items", f"{done.items:,}")]
    table([*rows, ("Bytes", size(done.nbytes))], plain(file), ">Exported")


@click.command("import", epilog="\b\nExample:\n  memlong import me.memlong --bank ./new")
@common()
@click.argument("file", type=click.Path())
@click.option("--encode", is_flag=True, help="Encode the text anew: another model wrote FILE.")
def import_(target: Target, file: str, encode: bool) -> None:
    """Take in the memories of FILE, an archive.

    All of it or nothing; every byte is checked before anything is written. Memories keep their
    ids, and those that are here already stay as they are.
    """
    with target.open() as ml, progress(f"Importing {file}", 1) as show:
        done = ml.restore(file, encode=encode, on_progress=show)
    if target.json:
        emit({"path": file, **done.model_dump(mode="json")})
        return
    text = f"Imported {counted(done.memories, 'memory')}, {counted(done.items, 'item')}"
    if done.present:
        text += f"; {counted(done.present, 'memory')} were here already"
    if done.evicted:
        text += f"; {counted(done.evicted, 'chunk')} evicted for capacity"
    click.echo(f"{text}.")
