"""A bank's K/V or vectors made anew from its text: for another model, another embedder, or repair.

In: a bank, a model or an embedder. Out: the same bank, of the new one. Memory stays bounded by a
batch; killed at any time, the next call goes on where it stopped. Text is the truth here: ids,
times, sessions, metadata, counters and the recall log stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from memlong_agent.chunking import ChunkText
from memlong_agent.config import Settings
from memlong_agent.embedding import Embedder, resolve_embedder
from memlong_agent.engine import Encoder
from memlong_agent.errors import ConfigError, StoreError
from memlong_agent.identity import Identity
from memlong_agent.kv import KVChunk, KVSpec
from memlong_agent.memlong.loading import Secret, encoding_model
from memlong_agent.memlong.recut import recut, same_cut
from memlong_agent.memory import chunk_vectors, embedded_parts, item_vectors
from memlong_agent.records import Rebuilt
from memlong_agent.storage import NewChunk, Old, Rebuilding, key_from

Progress = Callable[[int, int], None]
"""Called after each batch with the memories that are done and all memories."""
_TEXT_FORMAT = "text format"


def rebuild(
    model: str | Path | None = None,
    bank: str | Path | None = None,
    *,
    database: str | None = None,
    vectors: bool = False,
    embedder: str | Embedder = "auto",
    chunk_tokens: int | None = None,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    timeout_s: float = 30.0,
    key: Secret = None,
    model_kwargs: dict[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> Rebuilt:
    """Make a bank's K/V anew from its text: for another model, or to repair damaged files.

    With `vectors` its vectors instead, for another `embedder`: no model is loaded, and K/V stay as
    they are, byte for byte. `chunk_tokens` cuts all text anew; without it, text is cut anew only
    where the tokenizer differs. Ids, texts, times, sessions, metadata, counters and the recall log
    stay. Everybody else is refused meanwhile; an interrupted rebuild goes on with the next call.

    Raises:
        ConfigError: no bank, chunk_tokens too small, the embedder is not installed.
        StoreError: there is no bank, or nothing in it.
        UnsupportedModelError: the model cannot be loaded or given a memory.
        IncompatibleMemoryError: the bank's vectors are needed and come from another embedder.
    """
    if bank is None:
        raise ConfigError("Rebuild which bank? Pass its folder, bank=.")
    folder = Path(bank).expanduser()
    if not (folder / "kv").is_dir():
        raise StoreError(f"There is no bank at {folder}. Give the folder of a bank (--bank DIR).")
    with Rebuilding.open(
        folder, database=database, timeout_s=timeout_s, key=key_from(key)
    ) as opened:
        run = Rebuild(opened, on_progress)
        if vectors:
            return run.embed(resolve_embedder(embedder, opened.retrieval_identity()))
        loaded, tokenizer, _, encoding = encoding_model(model, device, dtype, model_kwargs)
        cutter = Cutter(Encoder(loaded, tokenizer), chunk_tokens)
        return run.encode(cutter, encoding, loaded.spec, embedder)


class Rebuild:
    """One run over one open bank."""

    def __init__(self, bank: Rebuilding, on_progress: Progress | None) -> None:
        self._bank, self._on_progress = bank, on_progress
        self._memories = self._chunks = self._items = 0
        self._left, self._total = 0, 0

    def encode(
        self,
        cutter: Cutter,
        encoding: Identity,
        spec: KVSpec,
        embedder: str | Embedder,
    ) -> Rebuilt:
        """All K/V. Vectors stay where the text is cut as before."""
        before = self._bank.encoding_identity()
        if before is None:
            raise StoreError(
                "The bank is empty: no model has written to it. Use it with the model you want."
            )
        format_stays = before.parts.get(_TEXT_FORMAT) == encoding.parts[_TEXT_FORMAT]
        vectors = _Vectors(self._bank, embedder)
        resumed = self._bank.begin("encoding", encoding, spec)
        self._left, self._total = self._bank.left()
        self._report(0)
        while batch := self._bank.memories():
            done: list[tuple[Old, list[NewChunk]]] = []
            for old in batch:
                cut = cutter.cut(old, format_stays)
                # One memory a call, as when it was written: K/V are the same to the last bit only
                # in the same company.
                kv = [each for _, each in cutter.encoder.encode(cut)]
                done.append((old, _new_chunks(old, cut, kv, vectors.of(old, cut))))
            self._bank.encode(done)
            self._chunks += sum(len(chunks) for _, chunks in done)
            self._report(len(batch))
        self._bank.finish()
        return self._result(resumed, encoding.differences(before))

    def embed(self, embedder: Embedder) -> Rebuilt:
        """All vectors by `embedder`; K/V are not touched."""
        before = self._bank.retrieval_identity() or Identity({})
        resumed = self._bank.begin("vectors", embedder.identity)
        self._left, self._total = self._bank.left()
        self._report(0)
        seen: set[int] = set()
        while batch := self._bank.chunks_without_vectors():
            found = chunk_vectors(embedder, [embedded_parts(c.header, c.text) for c in batch])
            self._bank.embed([(c.pk, vector) for c, vector in zip(batch, found, strict=True)])
            self._chunks += len(batch)
            new = {chunk.memory_pk for chunk in batch} - seen
            seen = {batch[-1].memory_pk}  # its chunks may go on in the next batch
            self._report(len(new))
        while some := self._bank.items_with_vectors():
            self._bank.embed_items([(item, item_vectors(embedder, item.value)) for item in some])
            self._items += len(some)
        self._bank.finish()
        return self._result(resumed, embedder.identity.differences(before))

    def _report(self, done: int) -> None:
        self._memories += done
        if self._on_progress is not None:
            self._on_progress(self._total - self._left + self._memories, self._total)

    def _result(self, resumed: bool, changes: Sequence[str]) -> Rebuilt:
        return Rebuilt(
            memories=self._memories,
            chunks=self._chunks,
            items=self._items,
            resumed=resumed,
            changes=tuple(changes),
        )


class Cutter:
    """Cuts memories anew where that can make a difference."""

    def __init__(self, encoder: Encoder, chunk_tokens: int | None) -> None:
        self.encoder = encoder
        self._may_stay = chunk_tokens is None
        asked: dict[str, Any] = {} if chunk_tokens is None else {"chunk_tokens": chunk_tokens}
        self._chunk_tokens = Settings(**asked).chunk_tokens

    def cut(self, old: Old, format_stays: bool) -> list[ChunkText]:
        """The chunks of a memory; the old ones if neither format, size nor token ids differ."""
        tokenize = self.encoder.tokenize
        kept = same_cut(old.chunks, tokenize) if self._may_stay and format_stays else None
        if kept is not None:
            return kept
        return recut(old.memory, old.chunks, tokenize, self._chunk_tokens)


class _Vectors:
    """Vectors of new chunks: the old ones where the text stayed, else by the bank's embedder."""

    def __init__(self, bank: Rebuilding, embedder: str | Embedder) -> None:
        self._bank, self._choice = bank, embedder
        self._embedder: Embedder | None = None  # loaded when it is needed

    def of(self, old: Old, cut: Sequence[ChunkText]) -> list[Any]:
        """(E,) or None for each chunk."""
        if _same(old, cut):
            return [old.vectors.get(chunk.pk) for chunk in old.chunks]
        if self._embedder is None:
            recorded = self._bank.retrieval_identity()
            self._embedder = resolve_embedder(self._choice, recorded)
            self._bank.claim_retrieval(self._embedder.identity)
        return list(chunk_vectors(self._embedder, [embedded_parts(c.header, c.body) for c in cut]))


def _same(old: Old, cut: Sequence[ChunkText]) -> bool:
    return [(c.header, c.text) for c in old.chunks] == [(c.header, c.body) for c in cut]


def _new_chunks(
    old: Old, cut: Sequence[ChunkText], kv: Sequence[KVChunk], vectors: Sequence[Any]
) -> list[NewChunk]:
    """What the old chunk of the same place counted, the new one goes on counting."""
    stays, made = _same(old, cut), []
    for at, text in enumerate(cut):
        before = old.chunks[at] if at < len(old.chunks) else None
        new = NewChunk(
            header=text.header,
            text=text.body,
            token_ids=text.token_ids,
            kv=kv[at],
            vector=vectors[at],
            ordinal=before.ordinal if before and stays else at,
            counter=before.counter if before else 0,
            last_recalled_at=before.last_recalled_at if before else None,
        )
        made.append(new)
    return made
