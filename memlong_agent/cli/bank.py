"""`memlong stats` and `doctor`: how much is in a bank, and whether it is whole and used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from memlong_agent.cli.options import Target, common
from memlong_agent.cli.output import counted, emit, size, table

if TYPE_CHECKING:
    from memlong_agent.memlong.doctor import Diagnosis

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


@click.command(epilog="\b\nExample:\n  memlong doctor --bank ./memory")
@common()
def doctor(target: Target) -> None:
    """Check a bank, and that memory changes what the model says.

    Compares rows with files, reads every key and value, computes the identities anew, and
    measures the logits with memory on and off. Exits with 1 when something is wrong.
    """
    with target.open() as ml:
        found = ml.doctor()
    if target.json:
        emit(found.model_dump(mode="json") | {"bank": target.bank, "healthy": found.healthy})
    else:
        _report(target.bank, found)
    if not found.healthy:
        raise click.exceptions.Exit(1)


def _report(bank: str, found: Diagnosis) -> None:
    kept = f"{counted(found.memories, 'memory')}, {counted(found.chunks, 'chunk')}, "
    kept += f"{counted(found.tokens, 'token')}, {size(found.bank_bytes)}"
    rows = [("Bank", bank), ("Holds", kept)]
    rows += [(f"Encoding: {part}", value) for part, value in found.encoding.items()]
    rows += [(f"Retrieval: {part}", value) for part, value in found.retrieval.items()]
    rows.append(("Memory on/off", f"moves a logit by up to {found.logit_difference:.3g}"))
    rows += [("Problem", problem) for problem in found.problems]
    rows.append(("Verdict", "healthy" if found.healthy else "not healthy"))
    table(rows, "Checked", "Found")
