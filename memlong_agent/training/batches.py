"""From samples to tensors: chunks to remember, windows to predict, and which reads which.

In: samples as text. Out: a :class:`Batch`. Chunks are cut, headed and tokenized by the very
functions that serve inference. Knows no weights and no optimizer.

Letters: B windows, T window tokens, N chunks, C chunk tokens, M recalled tokens of a window.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

import torch
from transformers import PreTrainedTokenizerFast

from memlong_agent.chunking import PREAMBLE, ChunkText, document_sections, exchange_chunks
from memlong_agent.training.dialogues import MemoryText, Sample, Turn
from memlong_agent.training.tokenizer import BEFORE_USER

REPLY_WEIGHT, ANSWER_WEIGHT = 1.0, 2.0
_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
GROUP_TOKENS = 6500  # window tokens of a batch, padding included; six of the longest windows
_CHUNK_GROUPS = 5  # 24,000 padded chunk tokens a step become 11,000
_TEN_YEARS_S = 10 * 365 * 86400


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimizer step's tensors; row `b` reads the `memory` tokens whose `bias` is finite."""

    chunk_ids: tuple[torch.Tensor, ...]  # each (N, P + C): preamble, header and body, padded right
    memory: torch.Tensor  # (B, M) index into all chunk tokens, flattened and joined
    bias: torch.Tensor  # (B, M) log-prior of the token's chunk, -inf padding
    window_ids: torch.Tensor  # (B, T)
    weights: torch.Tensor  # (B, T) loss weight of PREDICTING this token
    answers: torch.Tensor  # (B, T) bool: tokens of a reply that must hold a value
    preamble: int  # P


@dataclass(frozen=True, slots=True)
class Row:
    """One window and its memory, tokenized."""

    chunks: tuple[tuple[int, ...], ...]
    log_priors: tuple[float, ...]  # of each chunk
    window: tuple[int, ...]
    weights: tuple[float, ...]
    answers: tuple[bool, ...]


class Encoder:
    """Tokenizes samples as the product does; `user_weight` is the loss weight of user tokens."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, chunk_tokens: int = 128, user_weight: float = 0.0
    ) -> None:
        self.tokenizer = tokenizer
        self.chunk_tokens = chunk_tokens
        self.user_weight = user_weight
        self.preamble = [tokenizer.bos_token_id, *self.tokenize([PREAMBLE])[0]]
        self._role: dict[str, int] = {
            role: cast(int, tokenizer.convert_tokens_to_ids(f"<|{role}|>"))
            for role in ("user", "assistant")
        }

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        return [
            list(found.ids)
            for found in self.tokenizer.backend_tokenizer.encode_batch(
                texts, add_special_tokens=False
            )
        ]

    def row(self, sample: Sample, rng: random.Random) -> Row:
        """A sample as one row; the clock is random, older memories carry older dates."""
        now = _EPOCH + timedelta(seconds=rng.randrange(_TEN_YEARS_S))
        ordered = sorted(sample.memories, key=lambda memory: -memory.age_minutes)
        chunks = [
            (chunk, memory.log_prior) for memory in ordered for chunk in self.chunks(memory, now)
        ]
        return self.join(chunks, sample.turns)

    def chunks(self, memory: MemoryText, now: datetime) -> list[ChunkText]:
        """The chunks of one memory, as `MemLong` would store them."""
        when = now - timedelta(minutes=memory.age_minutes)
        if memory.kind == "document":
            sections = document_sections(
                memory.text, "book.txt", when, self.tokenize, self.chunk_tokens
            )
            return [chunk for section in sections for chunk in section]
        messages = [("user", memory.user), ("assistant", memory.reply)]
        return exchange_chunks(messages, when, self.tokenize, self.chunk_tokens)

    def join(self, chunks: Sequence[tuple[ChunkText, float]], turns: Sequence[Turn]) -> Row:
        """A window of `turns` in the chat template, over chunks with log-priors in time order."""
        window, weights, answers = [self.tokenizer.bos_token_id], [0.0], [False]
        for turn in turns:
            asked = [
                self._role["user"],
                *self.tokenize([BEFORE_USER + turn.user])[0],
                self.tokenizer.eos_token_id,
            ]
            window += asked
            weights += [self.user_weight] * len(asked)
            answers += [False] * len(asked)
            self._reply(turn, window, weights, answers)
        return Row(
            tuple(chunk.token_ids for chunk, _ in chunks),
            tuple(log_prior for _, log_prior in chunks),
            tuple(window),
            tuple(weights),
            tuple(answers),
        )

    def _reply(
        self, turn: Turn, window: list[int], weights: list[float], answers: list[bool]
    ) -> None:
        found = self.tokenizer.backend_tokenizer.encode(turn.reply, add_special_tokens=False)
        start = turn.reply.rindex(turn.answer) if turn.answer else len(turn.reply)
        stop = start + len(turn.answer)
        value = [first < stop and last > start for first, last in found.offsets]
        window += [self._role["assistant"], *found.ids, self.tokenizer.eos_token_id]
        weights += [0.0, *(ANSWER_WEIGHT if inside else REPLY_WEIGHT for inside in value)]
        weights.append(REPLY_WEIGHT)
        answers += [False, *[bool(turn.answer)] * (len(value) + 1)]


def collate(rows: Sequence[Row], preamble: Sequence[int], pad: int) -> Batch:
    """Rows as one :class:`Batch`; chunks of like length are padded together."""
    chunks = [(b, chunk) for b, row in enumerate(rows) for chunk in row.chunks]
    order = sorted(range(len(chunks)), key=lambda n: len(chunks[n][1]))
    size = max(1, -(-len(order) // _CHUNK_GROUPS))
    groups: list[torch.Tensor] = []
    starts: dict[int, int] = {}  # chunk -> its first token among all chunk tokens
    at = 0
    for group in (order[first : first + size] for first in range(0, len(order), size)):
        ids = [[*preamble, *chunks[n][1]] for n in group]
        groups.append(_padded(ids, torch.long, pad))
        width = groups[-1].shape[1] - len(preamble)
        starts |= {n: at + place * width for place, n in enumerate(group)}
        at += len(group) * width
    spans: list[list[int]] = [[] for _ in rows]
    for n, (b, chunk) in enumerate(chunks):
        spans[b] += range(starts[n], starts[n] + len(chunk))
    bias = [
        [prior for chunk, prior in zip(row.chunks, row.log_priors, strict=True) for _ in chunk]
        for row in rows
    ]
    return Batch(
        tuple(groups),
        _padded(spans, torch.long, 0),
        _padded(bias, torch.float32, float("-inf")),
        _padded([row.window for row in rows], torch.long, pad),
        _padded([row.weights for row in rows], torch.float32, 0.0),
        _padded([row.answers for row in rows], torch.bool, False),
        len(preamble),
    )


def grouped(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """Rows by rising length, `size` at a time; fewer where they would take too many tokens."""
    start = 0
    for end in range(1, len(rows) + 1):
        grown = end - start + 1  # rows of this group if the next one joined
        if end == len(rows) or grown > size or grown * len(rows[end].window) > GROUP_TOKENS:
            yield rows[start:end]
            start = end


def _padded(rows: Sequence[Sequence[float]], dtype: torch.dtype, fill: float) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=dtype)
