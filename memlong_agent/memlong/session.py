"""A session: turns of one conversation, over the memory of its owner.

In: what the user says. Out: replies, and the finished exchange in the bank. The live window is kept
as messages; each turn renders, recalls and prefills it anew, so that it never holds states that
were computed under memory recalled for another question, or forgotten since.
"""

from __future__ import annotations

import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from memlong_agent.attention import RecalledMemory
from memlong_agent.chunking import clean_text, exchange_chunks
from memlong_agent.config import Sampling
from memlong_agent.engine import Decoder, Engine, LiveWindow, Recalled, Sampler
from memlong_agent.memlong.chat_text import ChatText, Message, ReplyText, abstained
from memlong_agent.memlong.memories import Clock, Memories
from memlong_agent.memlong.stream import FairLock, Stream
from memlong_agent.memory import Draft, Written
from memlong_agent.records import Reply, Usage
from memlong_agent.storage import Owner

_QUERY_TAIL = 64  # generated tokens that join the question when recalling again


class Session:
    """One conversation. Made by :meth:`memlong_agent.MemLong.session`; safe to share by threads."""

    def __init__(
        self, engine: Engine, owner: Owner, session_id: str, system: str, clock: Clock
    ) -> None:
        self.id = session_id
        self.memories = Memories(engine, owner, clock, session_id=session_id)
        self._engine, self._owner, self._system, self._clock = engine, owner, system, clock
        self._text = ChatText(engine)
        self._messages: list[Message] | None = None  # None: not resumed yet
        self._forgotten = 0
        self._order = FairLock()

    def chat(
        self,
        text: str,
        *,
        memory: bool = True,
        write: bool = True,
        message_id: str | None = None,
        **sampling: Any,
    ) -> Reply:
        """One turn: answer `text` from the live window and from memory, and remember the exchange.

        `memory=False` recalls nothing; `write=False` writes nothing of this turn into the bank
        (what was recalled is still counted) nor into the live window. `sampling` are fields of
        `Sampling` (max_tokens 256, temperature 0, top_p, sample_top_k, seed, stop). With
        `message_id` a repeated call does not write twice.
        Raises ConfigError for an empty text or a misspelt setting, StoreError when the bank fails.
        """
        stream = self.stream(text, memory=memory, write=write, message_id=message_id, **sampling)
        for _ in stream:
            pass
        return stream.reply

    def stream(
        self,
        text: str,
        *,
        memory: bool = True,
        write: bool = True,
        message_id: str | None = None,
        **sampling: Any,
    ) -> Stream:
        """The same turn, piece by piece; arguments and errors as in :meth:`chat`."""
        settings = Sampling(**_as_tuple(sampling))
        turn = _Turn(clean_text(text), memory, write, message_id, settings, self._clock())
        return Stream(self._run(turn))

    def _run(self, turn: _Turn) -> Generator[str, None, Reply]:
        with self._order.held():
            history = list(self._resumed())
            window = self._window(history, turn)
            try:
                if turn.memory:
                    turn.recalled = self._recall(turn, window)
                first = turn.recalled.chunk_pks
                decoder = self._decoder(turn, window)
                reply = ReplyText(self._engine.tokenizer, (*turn.sampling.stop, *self._text.stop))
                prompt_ids = tuple(window.ids)
                for token in decoder:
                    if piece := reply.push(token):
                        yield piece
                    if reply.stopped:
                        break
                if piece := reply.finish():
                    yield piece
                turn.chunk_mass = dict(zip(first, decoder.chunk_mass, strict=False))
                said = reply.text.strip()
                written = self._finish(turn, said)
            except BaseException:
                self._engine.bank.discard_turn(self._owner, turn.id)
                raise
            if turn.write:
                self._messages = [*history, ("user", turn.text), ("assistant", said)]
            ended = decoder.stopped or reply.stopped
            return turn.reply(
                self.id, said, "stop" if ended else "length", decoder, window, prompt_ids, written
            )

    def _resumed(self) -> list[Message]:
        """The live messages; on first use, and after memories of the owner were forgotten or
        changed, the session's last turns in the bank, up to `resume_tokens`.
        """
        forgotten = self._engine.times_forgotten(self._owner)
        if self._messages is None or forgotten != self._forgotten:
            self._forgotten = forgotten
            self._messages = self._last_turns()
        return self._messages

    def _last_turns(self) -> list[Message]:
        limit = self._engine.settings.resume_tokens
        turns = self._engine.bank.tail(self._owner, self.id, max(1, limit // 4)) if limit else []
        kept: list[Message] = []
        for messages in reversed(turns):
            older = [(str(each["role"]), str(each["content"])) for each in messages] + kept
            if len(self._text.prompt("", older)[1]) > limit:
                break
            kept = older
        return kept

    def _window(self, history: list[Message], turn: _Turn) -> LiveWindow:
        """Prefix, newest turns and the new text; whole turns go first when they do not fit."""
        limit = self._engine.placement.window_tokens
        prefix, rest = self._text.prompt(self._system, [*history, ("user", turn.text)])
        if len(prefix) + len(rest) >= limit:
            before = len(rest)
            while history and len(rest) > (limit - len(prefix)) // 2:
                del history[:2]
                rest = self._text.prompt(self._system, [*history, ("user", turn.text)])[1]
            turn.overflowed += before - len(rest)
        window = LiveWindow(prefix, rest, limit)
        if window.dropped:
            self._write_pending(turn, "")
        return window

    def _decoder(self, turn: _Turn, window: LiveWindow) -> Decoder:
        def refresh(generated: Sequence[int]) -> RecalledMemory | None:
            return self._refreshed(turn, window, generated)

        engine = self._engine
        return Decoder(
            engine.model,
            engine.placement.start,
            window,
            turn.recalled.memory,
            Sampler(turn.sampling),
            engine.stop_ids,
            turn.sampling.max_tokens,
            refresh,
            engine.settings.recall_every if turn.memory else 0,
        )

    def _recall(self, turn: _Turn, window: LiveWindow, more: str = "") -> Recalled:
        recalled = self._engine.recall(
            self._owner,
            turn.text + more,
            session=self.id,
            turn=turn.id,
            top_k=self._engine.settings.top_k,
            window_ids=lambda: window.ids,
        )
        turn.marks |= {hit.chunk.pk: (hit.rank, hit.score) for hit in recalled.hits}
        return recalled

    def _refreshed(
        self, turn: _Turn, window: LiveWindow, generated: Sequence[int]
    ) -> RecalledMemory | None:
        """Memory for a rebuilt window: what the rebuild dropped can be recalled in its place."""
        if not turn.memory:
            return None
        if window.dropped > turn.written_dropped:
            turn.written_dropped = window.dropped
            self._write_pending(
                turn, self._engine.tokenizer.decode(list(generated), skip_special_tokens=True)
            )
        tail = self._engine.tokenizer.decode(
            list(generated[-_QUERY_TAIL:]), skip_special_tokens=True
        )
        found = self._recall(turn, window, f"\n{tail}")
        if found.chunk_pks != turn.recalled.chunk_pks:
            turn.recalled = found
        return turn.recalled.memory

    def _write_pending(self, turn: _Turn, reply: str) -> None:
        """Text that leaves the window before the turn is over becomes recallable by this turn."""
        if not (turn.write and turn.memory):
            return
        self._engine.bank.discard_turn(self._owner, turn.id)
        draft = self._draft(turn, reply, pending=turn.id)
        self._engine.bank.add(self._owner, [draft], turn=turn.id)

    def _finish(self, turn: _Turn, reply: str) -> Written:
        """Write the exchange, and count what was recalled, before the turn is reported finished."""
        bank = self._engine.bank
        written = Written([])
        if turn.write:
            written = bank.finish_turn(self._owner, turn.id, self._draft(turn, reply))
        if turn.marks:
            marks = [
                (pk, rank, score, turn.chunk_mass.get(pk))
                for pk, (rank, score) in turn.marks.items()
            ]
            bank.mark(self._owner, turn.id, marks)
        return written

    def _draft(self, turn: _Turn, reply: str, pending: str | None = None) -> Draft:
        said: list[Message] = [("user", turn.text)]
        if reply:
            said.append(("assistant", reply))
        recallable = said[:1] if abstained(reply) else said
        settings, engine = self._engine.settings, self._engine
        chunks = exchange_chunks(recallable, turn.at, engine.tokenize, settings.chunk_tokens)
        return Draft(
            role="exchange",
            text="\n".join(f"{role.capitalize()}: {content}" for role, content in said),
            chunks=engine.encode(chunks),
            session=self.id,
            messages=[{"role": role, "content": content} for role, content in said],
            message_id=None if pending else turn.message_id,
            created_at=turn.at,
            pending=pending,
        )


@dataclass(slots=True)
class _Turn:
    """What one turn was asked to do, and what it has gathered so far."""

    text: str
    memory: bool
    write: bool
    message_id: str | None
    sampling: Sampling
    at: datetime
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    recalled: Recalled = field(default_factory=lambda: Recalled((), None))
    marks: dict[int, tuple[int, float]] = field(default_factory=dict)  # chunk pk -> rank, score
    chunk_mass: dict[int, float] = field(default_factory=dict)  # chunk pk -> of the first prefill
    overflowed: int = 0
    written_dropped: int = 0

    def reply(
        self,
        session_id: str,
        text: str,
        finished: Literal["stop", "length"],
        decoder: Decoder,
        window: LiveWindow,
        prompt_ids: tuple[int, ...],
        written: Written,
    ) -> Reply:
        usage = Usage(
            prompt_tokens=len(prompt_ids),
            recalled_tokens=self.recalled.tokens,
            completion_tokens=len(decoder.generated),
            written_tokens=sum(memory.tokens for memory in written.memories),
            overflowed_tokens=self.overflowed + window.dropped,
            evicted=written.evicted,
        )
        return Reply(
            text=text,
            recalled=self.recalled.records(self.chunk_mass),
            attention_mass=decoder.attention_mass,
            finish_reason=finished,
            usage=usage,
            session_id=session_id,
            memory_ids=tuple(memory.id for memory in written.memories),
            prompt_ids=prompt_ids,
        )


def _as_tuple(sampling: dict[str, Any]) -> dict[str, Any]:
    """`stop="x"` means one stop string, not its letters."""
    stop = sampling.get("stop")
    return {**sampling, "stop": (stop,)} if isinstance(stop, str) else sampling
