"""`memlong stats` and `doctor`: how much is in a bank, and whether it is whole and used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from memlong_agent.cli.options import Target, common
from memlong_agent.cli.output import counted, emit, size, table

if TYPE_CHECKING:
    from memlong_agent.memlong.doctor import Diagnosis

_SHOWN = 10  # problems; one screen
_COUNTS = ("memories", "chunks", "tokens", "nbytes")


@click.command(epilog="\b\nExample:\n  memlong stats --bank ./memory")
@common()
def stats(target: Target) -> None:
    """Show memories, chunks, tokens and bytes of every owner."""
    with target.open() as ml:
        found = ml.stats()
    owners = [
        {"tenant": owner.tenant, "kind": owner.kind, "name": owner.name}
        | {name: getattr(kept, name) for name in _COUNTS}
        for owner, kept in found.items()
    ]
    if target.json:
        emit({"bank": target.bank, "owners": owners})
    elif owners:
        rows = [
            (owner.name, owner.kind, owner.tenant, *(f"{getattr(kept, n):,}" for n in _COUNTS))
            for owner, kept in found.items()
        ]
        table(rows, "Owner", "Kind", "Tenant", ">Memories", ">Chunks", ">Tokens", ">Bytes")
    else:
        click.echo(f"The bank at {target.bank} is empty.")


@click.command(epilog="\b\nExample:\n  memlong doctor --bank ./memory --repair")
@common()
@click.option("--repair", is_flag=True, help="Make anew what can be derived from the text.")
def doctor(target: Target, repair: bool) -> None:
    """Check a bank, and that memory changes what the model says.

    Compares rows with files, reads every key and value, computes the identities anew, and
    measures the logits with memory on and off. --repair encodes damaged or missing keys and
    values from their text, embeds missing vectors, makes the word index and counts anew,
    removes stray files and closes files to other users; it never touches text. Exits with 1
    when something is wrong and stays so.
    """
    with target.open() as ml:
        found = ml.doctor(repair=repair)
    if target.json:
        emit(found.model_dump(mode="json") | {"bank": target.bank, "healthy": found.healthy})
    else:
        _report(target.bank, found)
    if not found.healthy:
        raise click.exceptions.Exit(1)


def _report(bank: str, found: Diagnosis) -> None:
    kept = f"{counted(found.memories, 'memory')}, {counted(found.chunks, 'chunk')}, "
    kept += f"{counted(found.tokens, 'token')}, {size(found.bank_bytes)}"
    kind = f"{found.database}, schema {found.schema_step}, "
    kind += "encrypted" if found.encrypted else "not encrypted"
    if found.word_index_s is not None:
        kind += f" (word index made in {found.word_index_s:.2f} s)"
    rows = [("Bank", bank), ("Kept in", kind), ("Holds", kept)]
    if found.pending or found.expired:
        rows.append(("Of these", f"{found.pending} unfinished, {found.expired} expired"))
    rows += [(f"Encoding: {part}", value) for part, value in found.encoding.items()]
    rows += [(f"Retrieval: {part}", value) for part, value in found.retrieval.items()]
    rows.append(("Memory on/off", f"moves a logit by up to {found.logit_difference:.3g}"))
    rows += [("Repaired", done) for done in found.repaired]
    rows += [("Problem", problem) for problem in found.problems[:_SHOWN]]
    if len(found.problems) > _SHOWN:
        rows.append(("Problems", f"{len(found.problems) - _SHOWN} more; see them with --json"))
    rows.append(("Verdict", "healthy" if found.healthy else "not healthy"))
    table(rows, "Checked", "Found")
