"""A session: turns of one conversation, over the memory of its owner.

In: what the user says. Out: replies, and the finished exchange in the bank. The live window is kept
as messages; each turn renders, recalls and prefills it anew, so that it never holds states that
were computed under memory recalled for another question, or forgotten since.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from memlong_agent.chunking import clean_text
from memlong_agent.config import Sampling
from memlong_agent.engine import Engine, LiveWindow
from memlong_agent.memlong.chat_text import ChatText, Message, ReplyText
from memlong_agent.memlong.memories import Clock, Memories
from memlong_agent.memlong.stream import FairLock, Stream
from memlong_agent.memlong.turn import Turn, Turns
from memlong_agent.records import Reply
from memlong_agent.storage import Owner


class Session:
    """One conversation. Made by :meth:`memlong_agent.MemLong.session`; safe to share by threads."""

    def __init__(
        self,
        engine: Engine,
        owner: Owner,
        session_id: str,
        system: str,
        clock: Clock,
        order: FairLock,
    ) -> None:
        self.id = session_id
        self.memories = Memories(engine, owner, clock, session_id=session_id)
        self._engine, self._owner, self._system, self._clock = engine, owner, system, clock
        self._text, self._turns = ChatText(engine), Turns(engine, owner, session_id)
        self._messages: list[Message] | None = None  # None: not resumed yet
        self._forgotten = 0
        self._order = order

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
        settings = Sampling(**as_tuple(sampling))
        turn = Turn(clean_text(text), memory, write, message_id, settings, self._clock())
        return Stream(self._order.run(self._run(turn)), lane=self._order)

    def _run(self, turn: Turn) -> Generator[str, None, Reply]:
        history = list(self._resumed())
        window = self._window(history, turn)
        text = ReplyText(self._engine.tokenizer, (*turn.sampling.stop, *self._text.stop))
        reply = yield from self._turns.run(turn, window, text)
        if turn.write:
            self._messages = [*history, ("user", turn.text), ("assistant", reply.text)]
        return reply

    def _resumed(self) -> list[Message]:
        """The live messages; on first use, and after any process forgot or changed memories of the
        owner, the session's last turns in the bank, up to `resume_tokens`.
        """
        self._engine.bank.expire()
        forgotten = self._engine.bank.times_forgotten(self._owner)
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

    def _window(self, history: list[Message], turn: Turn) -> LiveWindow:
        """Prefix, newest turns and the new text; whole turns go first when they do not fit."""
        limit = self._engine.placement.window_tokens

        def prompt(without: int) -> tuple[list[int], list[int]]:
            # A question leaves with its answer.
            return self._text.prompt(self._system, [*history[2 * without :], ("user", turn.text)])

        del history[: 2 * turn.fit(prompt, (len(history) + 1) // 2, limit)]
        return LiveWindow(*prompt(0), limit)


def as_tuple(sampling: dict[str, Any]) -> dict[str, Any]:
    """`stop="x"` means one stop string, not its letters."""
    stop = sampling.get("stop")
    return {**sampling, "stop": (stop,)} if isinstance(stop, str) else sampling
