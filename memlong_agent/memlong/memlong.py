"""`MemLong`: a local LLM with a memory that survives turns and restarts."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch

from memlong_agent.chunking import clean_text
from memlong_agent.closing import Closing
from memlong_agent.config import PositionPolicy, Sampling, Settings
from memlong_agent.embedding import Embedder
from memlong_agent.engine import Engine, LiveWindow
from memlong_agent.errors import ConfigError, ContextOverflowError
from memlong_agent.memlong.archives import Archiving
from memlong_agent.memlong.calls import Wanted, respond
from memlong_agent.memlong.chat_text import ChatText, ReplyText
from memlong_agent.memlong.doctor import Diagnosis, examine
from memlong_agent.memlong.items import Items
from memlong_agent.memlong.loading import Secret, encoding_model
from memlong_agent.memlong.memories import Clock, Memories
from memlong_agent.memlong.messages import conversation
from memlong_agent.memlong.rebuild import rebuild
from memlong_agent.memlong.session import Session, as_tuple
from memlong_agent.memlong.stream import FairLock, Stream
from memlong_agent.memlong.turn import Turn, Turns
from memlong_agent.memory import MemoryBank, check_text
from memlong_agent.model import MemoryModel, Placement
from memlong_agent.model.load import sliding_window
from memlong_agent.records import Reply
from memlong_agent.storage import (
    Owner,
    OwnerStats,
    change_key,
    encrypt,
    key_from,
    needed_key,
    upgrade,
)

_WINDOW = 4096
_SESSIONS_KEPT = 256


def _now() -> datetime:
    return datetime.now(UTC)


class MemLong(Archiving, Closing):
    """A model and its bank. Thread-safe; close it, or use it as a context manager.

    Args:
        model: Hub name or folder of a Llama, Mistral, Qwen2 or Qwen3 checkpoint; default: the
            bundled memlong-tiny, a demonstration model.
        bank: Folder of the bank, made if absent; `":memory:"` keeps nothing on disk.
        database: URL of a PostgreSQL database (`postgresql+psycopg://...`) that holds the rows; the
            folder then holds keys and values, and both belong together. Needs [postgres].
        embedder: `"auto"`, `"minilm"`, `"lexical"`, a sentence-transformers folder or name, or an
            :class:`Embedder`.
        device, dtype: Default to CUDA when present, and to the checkpoint's dtype.
        tenant: Owners of different tenants never meet.
        index: `"auto"`, `"faiss"` or `"torch"`.
        key: Of an encrypted bank; a new bank opened with one is encrypted. 64 hexadecimal digits
            or 32 bytes, or a passphrase; a `Path` is a file that holds it. Default: MEMLONG_KEY, or
            the file MEMLONG_KEY_FILE names. Needs the extra [encrypt].
        clock: Source of "now"; aware datetimes.
        model_kwargs: For transformers: `device_map`, `quantization_config`, `revision`, ...
        settings: Fields of `Settings`: chunk_tokens, top_k, window_tokens, scope, ...

    Raises:
        ConfigError: no bank, a misspelt setting, no embedder installed.
        UnsupportedModelError: the model cannot be loaded or given a memory.
        IncompatibleMemoryError: the bank was written by another model or embedder.
        StoreError: the folder cannot be used.
        StoreKeyError: the bank is encrypted and this is not its key, or it is plain and there is a
            key.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        bank: str | Path | None = None,
        *,
        database: str | None = None,
        embedder: str | Embedder = "auto",
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        tenant: str = "default",
        index: str = "auto",
        timeout_s: float = 30.0,
        key: Secret = None,
        clock: Clock = _now,
        model_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if bank is None:
            raise ConfigError(
                'MemLong needs a bank. Pass bank="./memory", or bank=":memory:" to keep nothing '
                "on disk."
            )
        chosen, user_key = Settings(**settings), key_from(key)
        loaded, tokenizer, policy, encoding = encoding_model(model, device, dtype, model_kwargs)
        placement = _placement(loaded, chosen, chosen.position or policy)
        opened = MemoryBank.open(
            bank,
            encoding=encoding,
            spec=loaded.spec,
            embedder=embedder,
            settings=chosen,
            database=database,
            index_backend=index,  # type: ignore[arg-type]  # checked by the index room
            timeout_s=timeout_s,
            clock=clock,
            key=user_key,
        )
        self.engine = Engine(loaded, tokenizer, opened, chosen, placement)
        self._tenant, self._clock = tenant, clock
        # A session in use is one object; the last ones stay for callers who ask anew each turn, and
        # older ones resume from the bank.
        self._sessions: WeakValueDictionary[tuple[str, str | None, str], Session] = (
            WeakValueDictionary()
        )
        self._recent: deque[Session] = deque(maxlen=_SESSIONS_KEPT)
        self._orders: WeakValueDictionary[tuple[Owner, str], FairLock] = WeakValueDictionary()
        self._guard = threading.RLock()
        self.closed = False
        self._items = Items(self.engine, tenant, clock)

    def session(self, session_id: str, user_id: str | None = None, *, system: str = "") -> Session:
        """The conversation `session_id` of `user_id`, resumed if the bank holds its last turns.

        Without a user its memory is private to this session. The same arguments give the same
        object. Raises ConfigError for empty ids.
        """
        if not session_id or user_id == "":
            raise ConfigError(
                "A session needs a non-empty session_id, and a user_id that is None or not empty."
            )
        key = (session_id, user_id, system)
        with self._guard:
            session = self._sessions.get(key)
            if session is None:
                owner = self._owner(user_id, session_id)
                order = self._order(owner, session_id)
                session = Session(self.engine, owner, session_id, system, self._clock, order)
                self._sessions[key] = session
                self._recent.append(session)
        return session

    def memories(self, *, user_id: str | None = None, session_id: str | None = None) -> Memories:
        """The memories of a user, or of a session without a user."""
        if not (user_id or session_id) or user_id == "":
            raise ConfigError(
                "Whose memories? Pass user_id, or session_id for a session without a user."
            )
        return Memories(
            self.engine, self._owner(user_id, session_id or ""), self._clock, session_id=session_id
        )

    def items(self) -> Items:
        """JSON values under namespaces and keys, in the bank beside the memories."""
        return self._items

    def generate(
        self, prompt: str | Sequence[tuple[str, str]], *, system: str = "", **sampling: Any
    ) -> Reply:
        """A reply without any session: nothing is recalled and nothing is written.

        `prompt` is the user's text, or `(role, content)` messages. Raises ContextOverflowError when
        the prompt and `max_tokens` (default 256) do not fit the window together.
        """
        settings = Sampling(**as_tuple(sampling))
        messages = [("user", clean_text(prompt))] if isinstance(prompt, str) else list(prompt)
        text = ChatText(self.engine)
        prefix, rest = text.prompt(system, messages)
        limit = self.engine.placement.window_tokens
        if len(prefix) + len(rest) + settings.max_tokens > limit:
            raise ContextOverflowError(
                f"The prompt has {len(prefix) + len(rest)} tokens and max_tokens is "
                f"{settings.max_tokens}, together more than the window of {limit}. Shorten one, "
                "raise window_tokens, or use a session."
            )
        turn = Turn("", False, False, None, settings, self._clock())
        reply = ReplyText(self.engine.tokenizer, (*settings.stop, *text.stop))
        stream = Stream(
            Turns(self.engine, None, None).run(turn, LiveWindow(prefix, rest, limit), reply)
        )
        for _ in stream:
            pass
        return stream.reply

    def respond(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        session_id: str | None = None,
        user_id: str | None = None,
        memory: bool = True,
        write: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str = "auto",
        schema: Mapping[str, Any] | Literal["json"] | None = None,
        message_id: str | None = None,
        **sampling: Any,
    ) -> Stream:
        """One reply to `messages`, which are the whole prompt, as a stream of text pieces.

        For callers that keep the history themselves; a session's live window is neither used nor
        changed. Messages are dictionaries with role (system, user, assistant, tool) and content.
        Too long a prompt loses its oldest exchanges whole, then the oldest calls since the question
        with their results, counted in `usage.overflowed_tokens`.
        What is recalled for the last user message comes from the memory of `user_id`, or of
        `session_id` alone; without both, memory is neither read nor written. `write=True` writes
        one exchange, the last user message and a final reply, as :meth:`Session.chat` does.

        `tools` are OpenAI function dictionaries. Under `tool_choice` "auto" the model may call them
        (`reply.tool_calls`; a call is no text piece), under "none" not; "any" or a tool's name
        forces a call. A forced call, and a reply under `schema` (a JSON schema, or "json" for any
        object), always validates; `stop` does not apply to it. With "auto", tools and a schema the
        reply is one or the other. Needs llguidance: extra [langchain] or [llama-index].
        Raises ConfigError for a wrong message, tool or setting; while streaming also for a schema
        that cannot be guaranteed, and when `max_tokens` is too small for the JSON.
        """
        if session_id == "" or user_id == "":
            raise ConfigError("An empty session_id or user_id names nobody. Leave it out, or None.")
        asked, wanted = conversation(messages), Wanted.checked(tools, tool_choice, schema)
        settings = Sampling(**as_tuple(sampling))
        owner = None
        if session_id is not None or user_id is not None:
            owner = self._owner(user_id, session_id or "")
        write = write and owner is not None and bool(asked.question)
        if write:
            check_text(self.engine.settings, asked.question)
        turn = Turn(asked.question, memory, write, message_id, settings, self._clock())
        order = self._order(owner, session_id) if owner and session_id and write else None
        turns = Turns(self.engine, owner, session_id)
        return respond(self.engine, turns, asked, turn, wanted, order)

    def stats(self) -> dict[Owner, OwnerStats]:
        """Memories, chunks, tokens and bytes by owner."""
        return self.engine.bank.stats()

    def purge(self) -> None:
        """Leave no byte of what was forgotten, changed or evicted in the bank's files.

        Raises StoreLockedError when other processes read the bank for longer than the timeout.
        """
        self.engine.bank.purge()

    def doctor(self, *, repair: bool = False) -> Diagnosis:
        """Check identities, rows against files, and that memory moves the logits.

        With `repair`, what is derived from the text and missing or damaged is made anew first.
        """
        return examine(self.engine, repair=repair)

    rebuild = staticmethod(rebuild)
    upgrade = staticmethod(upgrade)

    @staticmethod
    def encrypt(
        bank: str | Path,
        key: Secret = None,
        *,
        new_key: Secret = None,
        database: str | None = None,
        timeout_s: float = 30.0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> bool:
        """Encrypt a plain bank with `key`, or give an encrypted one a `new_key`.

        Keys are as for :class:`MemLong`. False if there was nothing to do. `on_progress` gets the
        chunks done and all chunks. Others must not use the bank meanwhile.
        Raises StoreKeyError when `key` is not the key of the bank, ConfigError when there is none.
        """
        options: Any = {"database": database, "timeout_s": timeout_s}
        if new_key is not None:
            change_key(bank, needed_key(key), needed_key(new_key), **options)
            return True
        return encrypt(bank, needed_key(key), on_progress=on_progress, **options)

    def close(self) -> None:
        """Let go of the bank. Calls after this raise StoreError."""
        self.closed = True
        self._recent.clear()
        self.engine.bank.close()

    def _order(self, owner: Owner, session_id: str) -> FairLock:
        """The order of a session's turns, one for all who hold the session."""
        with self._guard:
            return self._orders.setdefault((owner, session_id), FairLock())


def _placement(model: MemoryModel, settings: Settings, policy: PositionPolicy) -> Placement:
    """Where memory and window stand, checked against the model's limits."""
    config = model.lm.config
    limit = int(config.max_position_embeddings)
    window = settings.window_tokens or min(_WINDOW, limit // 2)
    span = settings.top_k * settings.chunk_tokens
    placement = Placement(policy, span, window)
    reach = placement.start + window
    if reach > limit:
        raise ConfigError(
            f"window_tokens={window} with {span} recalled tokens placed {policy!r} reaches "
            f"position {reach}, but the model's limit is {limit}. Lower window_tokens, top_k or "
            "chunk_tokens."
        )
    slides = sliding_window(config)
    if slides is not None and window + span > slides:
        raise ConfigError(
            f"Every layer of this model slides over {slides} tokens, but window_tokens={window} "
            f"and {span} recalled tokens need {window + span}. Lower window_tokens, top_k or "
            "chunk_tokens."
        )
    return placement
