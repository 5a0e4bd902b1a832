"""Constrained decoding: which token may come next so that the reply is a call or fits a schema.

In: JSON schemas, logits, sampled token ids. Out: logits with everything else at minus infinity, and
the token that is really taken. A grammar alone does not make a random model finish: a string can go
on until `max_tokens`. Therefore the shortest known ending is kept at every step, and a token that
would leave too little room for it is not taken. The library, llguidance, is loaded on first use.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from memlong_agent.engine.schemas import reply_schema
from memlong_agent.errors import ConfigError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_NUMBER = "0123456789.-+eE"
_CLOSERS, _STARTERS = "}],", 'ntf0123456789"[-{'
_PRINTABLE = [chr(code) for code in range(0x20, 0x7F)]
_PUNCTUATION_FIRST = sorted(_PRINTABLE, key=str.isalnum)
_NO_LIBRARY = (
    "A tool that must be called, and a reply that must fit a JSON schema, need llguidance, which "
    'is not installed. Run: pip install "memlong-agent[langchain]" (or [llama-index]).'
)


class Vocabulary:
    """The tokenizer as grammars need it. Made on first use, once per engine; thread-safe."""

    def __init__(self, tokenizer: Any, size: int, stop_ids: frozenset[int]) -> None:
        self._tokenizer, self._size, self.stop_ids = tokenizer, size, stop_ids
        self._guard = threading.Lock()
        self._made: LLTokenizer | None = None
        self.single: dict[str, int] = {}
        """Token id of each printable ASCII character."""

    def constraint(
        self,
        calls: Mapping[str, Mapping[str, Any]],
        schema: Mapping[str, Any] | None,
        *,
        arguments: str = "arguments",
    ) -> Constraint:
        """A fresh constraint for one reply: one of `calls`, or JSON that fits `schema`.

        `calls` maps names to the schemas of their arguments; a call is written
        `{"name": ..., "arguments": ...}`, the second key as `arguments` says. Raises ConfigError
        when llguidance is missing, or cannot guarantee what a schema asks for, or a schema is not
        JSON.
        """
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise ConfigError(_NO_LIBRARY) from None
        try:
            whole = json.dumps(reply_schema(calls, schema, arguments))
        except (TypeError, ValueError) as exc:
            if isinstance(exc, ConfigError):
                raise
            raise ConfigError(f"A schema is not JSON: {exc}. Pass dictionaries of JSON.") from exc
        made = self._tokens()
        grammar = LLMatcher.grammar_from_json_schema(whole)
        matcher = LLMatcher(made, grammar, log_level=0)
        if matcher.is_error():
            raise ConfigError(
                "This JSON schema cannot be guaranteed: "
                f"{_first_line(matcher.get_error())}. Leave that part out of the schema."
            )
        return Constraint(matcher, made, self)

    def _tokens(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        with self._guard:
            if self._made is None:
                made = LLTokenizer(
                    self._tokenizer.backend_tokenizer.to_str(),
                    n_vocab=self._size,
                    eos_token=sorted(self.stop_ids),
                )
                self.single = {each: made.greedy_tokenize(each)[0] for each in _PRINTABLE}
                self._made = made
            return self._made


class Constraint:
    """The state of one constrained reply."""

    def __init__(self, matcher: LLMatcher, tokens: LLTokenizer, vocabulary: Vocabulary) -> None:
        self._matcher, self._tokens, self._vocabulary = matcher, tokens, vocabulary
        self._place = _Place()
        self._ending: list[int] | None = None  # ids that complete the reply from here

    @property
    def closed(self) -> bool:
        """Whether nothing more can come."""
        return bool(self._matcher.is_stopped())

    @property
    def complete(self) -> bool:
        """Whether the reply satisfies the grammar as it stands."""
        return bool(self._matcher.is_accepting())

    def mask(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits `(V,)` with every token that may not come next at minus infinity."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)  # (V,)
        barred = torch.from_numpy(~allowed).to(logits.device)
        return logits.masked_fill(barred, float("-inf"))

    def take(self, token: int, left: int) -> int:
        """Go on with `token`, or with the shortest ending where it leaves too little room.

        `left` counts the tokens that may still come, this one included. Returns the id taken.
        Raises ConfigError when the library gives up on the schema.
        """
        if token in self._vocabulary.stop_ids:
            return token
        if self._ending is None:
            self._ending = self._shortest(self._matcher, self._place, left)
        if self._ending and token == self._ending[0]:
            after: list[int] | None = self._ending[1:]
        else:
            ahead, place = self._matcher.deep_copy(), self._place.copy()
            ahead.consume_token(token)
            place.pass_over(self._tokens.decode_bytes([token]))
            after = self._shortest(ahead, place, left - 1)
            if after is None and self._ending is not None:
                if not self._ending:  # complete as it stands, and there is no room for this
                    return min(self._vocabulary.stop_ids)
                token, after = self._ending[0], self._ending[1:]
        self._ending = after
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise ConfigError(
                "This JSON schema is too much for constrained decoding: "
                f"{_first_line(self._matcher.get_error())}. Make it simpler."
            )
        self._place.pass_over(self._tokens.decode_bytes([token]))
        return token

    def _shortest(self, matcher: LLMatcher, place: _Place, most: int) -> list[int] | None:
        """At most `most` ids that complete the reply, chosen step by step; None if there are none.

        Not always the fewest there are; always ones that the grammar allows.
        """
        matcher, place = matcher.deep_copy(), place.copy()
        ids: list[int] = []
        used: Counter[int] = Counter()
        while not matcher.is_accepting():
            step = matcher.compute_ff_tokens() or self._choice(matcher, place, used)
            if not step or len(ids) + len(step) > most or not matcher.consume_tokens(step):
                return None
            used.update(step)
            ids += step
            place.pass_over(self._tokens.decode_bytes(step))
        return ids

    def _choice(self, matcher: LLMatcher, place: _Place, used: Counter[int]) -> list[int]:
        """The allowed token that most likely leads to an end soon."""
        mask = matcher.compute_bitmask()
        for token in self._candidates(place, used):
            if mask[token >> 3] >> (token & 7) & 1:
                return [token]
        bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")
        others = [int(each) for each in np.flatnonzero(bits)]
        return [each for each in others if each not in self._vocabulary.stop_ids][:1]

    def _candidates(self, place: _Place, used: Counter[int]) -> Iterator[int]:
        """Single characters, the best first. What a pattern lets repeat forever is used in turn."""
        single = self._vocabulary.single
        if place.in_string:
            yield single['"']
            chars: Sequence[str] = _PUNCTUATION_FIRST
        elif place.last in _NUMBER:
            yield from (single[each] for each in _CLOSERS)
            chars = _NUMBER
        else:
            yield from (single[each] for each in _CLOSERS + _STARTERS)
            return
        yield from sorted((single[each] for each in chars), key=lambda token: used[token])


class _Place:
    """Where in a JSON text we are: in a string or not, and after which character."""

    def __init__(self, in_string: bool = False, escaped: bool = False, last: str = " ") -> None:
        self.in_string, self.escaped, self.last = in_string, escaped, last

    def copy(self) -> _Place:
        return _Place(self.in_string, self.escaped, self.last)

    def pass_over(self, text: bytes) -> None:
        for char in text.decode("latin-1"):  # only ASCII matters, and UTF-8 keeps it apart
            if self.escaped:
                self.escaped = False
            elif self.in_string and char == "\\":
                self.escaped = True
            elif char == '"':
                self.in_string = not self.in_string
            self.last = char


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else "unknown reason"
