"""One turn: recall, decode token by token, remember. Sessions and explicit messages share it.

In: a live window, what was asked of the turn, and the reply's text as it forms. Out: pieces of
text, then the whole reply, written into the bank before it is reported finished. How the window
came about, and what happens to it afterwards, is decided by the caller.
"""

from __future__ import annotations

import uuid
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from memlong_agent.attention import RecalledMemory
from memlong_agent.config import Sampling
from memlong_agent.engine import Constraint, Decoder, Engine, LiveWindow, Recalled
from memlong_agent.errors import ConfigError
from memlong_agent.memlong.chat_text import Message, ReplyText
from memlong_agent.memlong.exchange import exchange
from memlong_agent.memory import Draft, Written
from memlong_agent.records import Reply, Usage
from memlong_agent.storage import Owner

Prompt = Callable[[int], tuple[list[int], list[int]]]
"""Ids of what always stays and of the rest, when that many of the oldest parts have left."""
_QUERY_TAIL = 64  # generated tokens that join the question when recalling again


@dataclass(slots=True)
class Turn:
    """What one turn was asked to do, and what it has gathered so far."""

    text: str  # what the user said: the question of the recall, and what is written
    memory: bool
    write: bool
    message_id: str | None
    sampling: Sampling
    at: datetime
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    recalled: Recalled = field(default_factory=lambda: Recalled((), None))
    marks: dict[int, tuple[int, float]] = field(default_factory=dict)  # chunk pk -> rank, score
    chunk_mass: dict[int, float] = field(default_factory=dict)  # chunk pk -> of the first prefill
    overflowed: int = 0  # tokens of messages that left before the reply began
    written_dropped: int = 0

    def fit(self, prompt: Prompt, most: int, limit: int) -> int:
        """How many of the oldest parts must leave so that the rest takes half the room.

        None while the whole prompt fits into `limit` tokens, and never more than `most`.
        """
        prefix, rest = prompt(0)
        if len(prefix) + len(rest) < limit:
            return 0
        room = (limit - len(prefix)) // 2
        # Each look renders the whole prompt: twelve looks settle 4,096 parts.
        parts = bisect_left(range(most), 1, key=lambda n: len(prompt(n)[1]) <= room)
        self.overflowed += len(rest) - len(prompt(parts)[1])
        return parts


class Turns:
    """Runs the turns of one owner's session; without an owner nothing is recalled or written."""

    def __init__(self, engine: Engine, owner: Owner | None, session_id: str | None) -> None:
        self._engine, self._owner, self._session_id = engine, owner, session_id

    def run(
        self,
        turn: Turn,
        window: LiveWindow,
        reply: ReplyText,
        constraint: Constraint | None = None,
    ) -> Generator[str, None, Reply]:
        """Decode the reply over `window`; yields once a token, empty where no text is certain.

        What the window has dropped already becomes recallable to this turn first. A failed or
        cancelled turn leaves nothing in the bank, and a reply that calls a tool is not written.
        Raises ConfigError when `max_tokens` ends a constrained reply too soon.
        """
        try:
            if window.dropped:
                self._write_pending(turn, "")
            if turn.memory and self._owner is not None:
                turn.recalled = self._recall(turn, self._owner, window)
            first, prompt_ids = turn.recalled.chunk_pks, tuple(window.ids)
            decoder = self._decoder(turn, window, constraint)
            yield from _said(decoder, reply)
            if constraint is not None and not constraint.complete:
                raise ConfigError(
                    f"max_tokens={turn.sampling.max_tokens} ended the JSON of this reply before it "
                    "was complete (finish_reason 'length'). Raise max_tokens."
                )
            turn.chunk_mass = dict(zip(first, decoder.chunk_mass, strict=False))
            written = self._finish(turn, reply)
        except BaseException:
            if self._owner is not None:
                self._engine.bank.discard_turn(self._owner, turn.id)
            raise
        return self._record(turn, window, prompt_ids, decoder, reply, written)

    def _record(
        self,
        turn: Turn,
        window: LiveWindow,
        prompt_ids: tuple[int, ...],
        decoder: Decoder,
        reply: ReplyText,
        written: Written,
    ) -> Reply:
        usage = Usage(
            prompt_tokens=len(prompt_ids),
            recalled_tokens=turn.recalled.tokens,
            completion_tokens=len(decoder.generated),
            written_tokens=sum(memory.tokens for memory in written.memories),
            overflowed_tokens=turn.overflowed + window.dropped,
            evicted=written.evicted,
        )
        return Reply(
            text=reply.text.strip(),
            recalled=turn.recalled.records(turn.chunk_mass),
            attention_mass=decoder.attention_mass,
            finish_reason="stop" if decoder.stopped or reply.stopped else "length",
            usage=usage,
            session_id=self._session_id,
            memory_ids=tuple(memory.id for memory in written.memories),
            prompt_ids=prompt_ids,
            tool_calls=reply.calls,
        )

    def _decoder(self, turn: Turn, window: LiveWindow, constraint: Constraint | None) -> Decoder:
        def refresh(generated: Sequence[int]) -> RecalledMemory | None:
            return self._refreshed(turn, window, generated)

        engine = self._engine
        return Decoder(
            engine.model,
            engine.placement.start,
            window,
            turn.recalled.memory,
            engine.sampler(turn.sampling, constraint),
            engine.stop_ids,
            turn.sampling.max_tokens,
            refresh,
            engine.settings.recall_every if turn.memory else 0,
        )

    def _recall(
        self, turn: Turn, owner: Owner, window: LiveWindow, generated: str = ""
    ) -> Recalled:
        recalled = self._engine.recall(
            owner,
            turn.text,
            generated=generated,
            session=self._session_id,
            turn=turn.id,
            top_k=self._engine.settings.top_k,
            window_ids=lambda: window.ids,
        )
        turn.marks |= {hit.chunk.pk: (hit.rank, hit.score) for hit in recalled.hits}
        return recalled

    def _refreshed(
        self, turn: Turn, window: LiveWindow, generated: Sequence[int]
    ) -> RecalledMemory | None:
        """Memory for a rebuilt window: what the rebuild dropped can be recalled in its place."""
        if not turn.memory or self._owner is None:
            return None
        if window.dropped > turn.written_dropped:
            turn.written_dropped = window.dropped
            self._write_pending(
                turn, self._engine.tokenizer.decode(list(generated), skip_special_tokens=True)
            )
        tail = self._engine.tokenizer.decode(
            list(generated[-_QUERY_TAIL:]), skip_special_tokens=True
        )
        found = self._recall(turn, self._owner, window, tail)
        if found.chunk_pks != turn.recalled.chunk_pks:
            turn.recalled = found
        return turn.recalled.memory

    def _write_pending(self, turn: Turn, reply: str) -> None:
        """Text that leaves the window before the turn is over becomes recallable by this turn."""
        if self._owner is None or not (turn.write and turn.memory):
            return
        self._engine.bank.discard_turn(self._owner, turn.id)
        draft = self._draft(turn, reply, pending=turn.id)
        self._engine.bank.add(self._owner, [draft], turn=turn.id)

    def _finish(self, turn: Turn, reply: ReplyText) -> Written:
        """Write the exchange, and count what was recalled, before the turn is reported finished."""
        bank = self._engine.bank
        if self._owner is None:
            return Written([])
        recalled = [
            (pk, rank, score, turn.chunk_mass.get(pk)) for pk, (rank, score) in turn.marks.items()
        ]
        if not turn.write:
            bank.mark(self._owner, turn.id, recalled)
            return Written([])
        draft = None if reply.calls else self._draft(turn, reply.text.strip())
        return bank.finish_turn(self._owner, turn.id, draft, recalled)

    def _draft(self, turn: Turn, reply: str, pending: str | None = None) -> Draft:
        said: list[Message] = [("user", turn.text), ("assistant", reply)]
        return exchange(
            self._engine,
            said if reply else said[:1],
            turn.at,
            session=self._session_id,
            message_id=turn.message_id,
            pending=pending,
        )


def _said(decoder: Decoder, reply: ReplyText) -> Iterator[str]:
    """The reply's text as it forms, blank where a token makes none certain."""
    for token in decoder:
        yield reply.push(token)
        if reply.stopped:
            break
    if piece := reply.finish():
        yield piece
