"""The engine: one model, one bank. Recall for a question, encode what is remembered.

In: texts cut by the chunking room, token ids, owners. Out: placed memory, decoders, drafts ready
for the bank. It knows token ids and tensors; messages, chat templates and when to write are
decided upstairs. Thread-safe: requests share weights and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memlong_agent.attention import RecalledMemory
from memlong_agent.config import Sampling, Settings
from memlong_agent.engine.constraint import Constraint, Vocabulary
from memlong_agent.engine.encoder import Encoder
from memlong_agent.engine.sampling import Sampler
from memlong_agent.memory import Hit, MemoryBank, recall_record
from memlong_agent.model import MemoryModel, Placement
from memlong_agent.records import Recall, said
from memlong_agent.storage import Owner, StoredChunk


@dataclass(frozen=True, slots=True)
class Recalled:
    """What one recall brought: hits in time order, and their K/V placed for the request."""

    hits: tuple[Hit, ...]
    memory: RecalledMemory | None

    @property
    def tokens(self) -> int:
        return sum(hit.kv.tokens for hit in self.hits)

    @property
    def chunk_pks(self) -> tuple[int, ...]:
        return tuple(hit.chunk.pk for hit in self.hits)

    def records(self, chunk_mass: Mapping[int, float]) -> tuple[Recall, ...]:
        """Most relevant first; `chunk_mass` is by chunk key."""
        return tuple(
            recall_record(hit.chunk, hit.score).replace(attention_mass=chunk_mass.get(hit.chunk.pk))
            for hit in sorted(self.hits, key=lambda hit: hit.rank)
        )


class Engine(Encoder):
    """One model and one bank, shared by all sessions."""

    def __init__(
        self,
        model: MemoryModel,
        tokenizer: Any,
        bank: MemoryBank,
        settings: Settings,
        placement: Placement,
    ) -> None:
        super().__init__(model, tokenizer)
        self.bank, self.settings, self.placement = bank, settings, placement
        self.stop_ids = _stop_ids(model, tokenizer)
        self.vocabulary = Vocabulary(tokenizer, model.lm.config.vocab_size, self.stop_ids)
        self.sampler: Callable[[Sampling, Constraint | None], Sampler] = Sampler
        """What makes the sampler of a reply; tests put in one with preferences."""

    def recall(
        self,
        owner: Owner,
        query: str,
        *,
        generated: str = "",
        session: str | None,
        turn: str,
        top_k: int,
        window_ids: Callable[[], Sequence[int]],
    ) -> Recalled:
        """The chunks of `owner` that answer best and are not in the prompt already, placed."""
        live = self.tokenizer.decode(list(window_ids()), skip_special_tokens=True)
        hits = self.bank.recall(
            owner,
            query,
            top_k=top_k,
            generated=generated,
            scope=self.settings.scope,
            session=session,
            turn=turn,
            absent=lambda chunk: not _in_prompt(chunk, live),
        )
        memory = self.model.recall(
            [hit.kv for hit in hits],
            self.placement,
            log_priors=[hit.log_prior for hit in hits],
            trace_chunks=True,
        )
        return Recalled(tuple(hits), memory)


def _in_prompt(chunk: StoredChunk, live: str) -> bool:
    """Whether all that was said in the chunk stands in the live window's text now."""
    return all(part in live for part in said(chunk.text))


def _stop_ids(model: MemoryModel, tokenizer: Any) -> frozenset[int]:
    """Ids that end a reply: of the generation config and of the tokenizer."""
    named = getattr(model.lm.generation_config, "eos_token_id", None)
    found = named if isinstance(named, list) else [named]
    return frozenset(token for token in [*found, tokenizer.eos_token_id] if token is not None)
