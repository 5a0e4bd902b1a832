"""`memlong add`, `search` and `list`: what is in the bank, and how more gets there."""

from __future__ import annotations

from pathlib import Path

import click

from memlong_agent.cli.files import opened
from memlong_agent.cli.options import Target, common
from memlong_agent.cli.output import counted, emit, memory_table, plain, progress, recall_table


@click.command(epilog="\b\nExample:\n  memlong add notes.md\n  git log | memlong add -")
@common("user", "session")
@click.argument("file")
@click.option("--source", metavar="NAME", help="Where the text is from; default: the file's name.")
def add(target: Target, file: str, source: str | None) -> None:
    """Remember FILE, a text; - is standard input.

    It is UTF-8 (txt, md, ...) and is read as a stream. Adding the same text again writes
    nothing twice, and goes on where an interrupted call stopped.
    """
    if source is None and file != "-":
        source = click.format_filename(Path(file).name)
    name = source or "standard input"
    with opened(file) as text, target.open() as ml, progress(name, text.total) as show:
        written = target.memories(ml).add(
            text, source=source, on_progress=lambda done: show(text.bytes_of(done))
        )
    tokens = sum(memory.tokens for memory in written)
    if target.json:
        ids = [memory.id for memory in written]
        emit({"source": source, "tokens": tokens, "memory_ids": ids})
    else:
        sections = counted(len(written), "section")
        click.echo(f"Remembered {plain(name)}: {sections}, {counted(tokens, 'token')}.")


@click.command(epilog='\b\nExample:\n  memlong search "where is the spare key" --top-k 3')
@common("user")
@click.argument("query")
@click.option("--top-k", metavar="N", type=int, default=8, show_default=True, help="Most results.")
def search(target: Target, query: str, top_k: int) -> None:
    """Show what would be recalled for QUERY, best first.

    With --json one object a line.
    """
    with target.open() as ml:
        found = target.memories(ml).search(query, top_k=top_k)
    if target.json:
        for recall in found:
            emit(recall.model_dump(mode="json"))
    elif found:
        recall_table(found)
    else:
        click.echo("Nothing would be recalled.")


@click.command("list", epilog="\b\nExample:\n  memlong list --limit 20 --json")
@common("user", "narrow")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Most memories.")
def list_(target: Target, limit: int | None) -> None:
    """List a user's memories, newest first.

    With --json one object a line.
    """
    with target.open() as ml:
        memories = target.memories(ml).list(limit=limit, session_id=target.session)
    if target.json:
        for memory in memories:
            emit(memory.model_dump(mode="json"))
    elif memories:
        memory_table(memories)
    else:
        click.echo("There are no memories.")
