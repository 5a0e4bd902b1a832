"""From text to chunks: headers, borders, token ids.

In: the messages of one exchange, or a document as one string or a stream of strings, and a
tokenizer given as a function. Out: :class:`ChunkText`, at most `chunk_tokens` tokens each, header
included. Text is cut first and then tokenized; it is never recovered by decoding ids.
Knows no model, no tensor and no disk. Removing control tokens of a chat template from a text is
the caller's work.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice

from memlong_agent.errors import ConfigError

Tokenize = Callable[[list[str]], list[list[int]]]
"""Many strings in, their token ids out in the same order, without special tokens."""

PREAMBLE = "Earlier conversation:\n"
"""Text before every chunk when it is encoded; its K/V are dropped."""
CHUNKING_VERSION = "1"
"""Part of the encoding identity: raise it when a text would be cut or headed differently."""

_MIN_BODY_TOKENS = 16
_SOURCE_CHARS = 40
_BLOCK_CHARS = 1 << 16
_LOOKBEHIND_CHARS = 64  # BORDER looks 41 characters back
_SPANS_PER_BATCH = 256  # spans tokenized by one call
_CHARS_PER_TOKEN = 4  # a span longer than 4 x chunk_tokens would hardly fit a chunk
_EMPTY = "The text is empty. Pass a text with at least one visible character."

BORDER = re.compile(
    r"\n(?:[^\S\n]*\n)+"  # blank lines
    # A line end; but in a line of 40 or more characters a lower-case letter after it means that
    # the prose is hard-wrapped and the sentence goes on.
    r"|\n(?:(?![a-z])|(?<![^\n]{40}\n))"
    r"|[.!?…](?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)"
    r"[\"'\u201d\u2019\u00bb)\]_*]*[^\S\n]+(?!\s)"
    r"|[\u3002\uff01\uff1f][\u201d\u2019\u300d\u300f\uff09]*"  # CJK: no whitespace follows
)
# Brackets would end a header early; control, direction and surrogate characters hide or break it.
_UNSAFE_IN_SOURCE = re.compile(
    "[][<>{}\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*\Z")


@dataclass(frozen=True, slots=True)
class ChunkText:
    """One chunk as text and as token ids of `header + body`, tokenized as one string."""

    header: str
    body: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Span:
    """A stretch of text that is cut only when it alone overflows a chunk."""

    text: str
    role: str = ""  # "User"; empty in documents
    opens: bool = False  # the first span of its message
    tokens: int = 0  # of this text alone; never 0 once counted, so a chunk holds few spans


def clean_text(text: str | bytes) -> str:
    """The text, decoded, without a byte order mark.

    Raises `ConfigError` for an empty text, invalid UTF-8, a lone surrogate or a NUL character; the
    message names the byte offset.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as exc:
            raise ConfigError(
                f"The text is not valid UTF-8 at byte {exc.start}. Convert it and try again."
            ) from None
    _checked_bytes(text, 0)
    if not text.strip("\ufeff").strip():
        raise ConfigError(_EMPTY)
    return text.removeprefix("\ufeff")


def exchange_chunks(
    messages: Sequence[tuple[str, str]], when: datetime, tokenize: Tokenize, chunk_tokens: int
) -> list[ChunkText]:
    """The chunks of one exchange: `(role, text)` pairs in order, blank texts left out.

    The role of the first text in a chunk stands in its header, `[2026-11-20 14:05] User: ` (UTC;
    a time without a zone is taken as UTC); later messages begin with `\\nAssistant: ` in the body.
    Raises `ConfigError` when all texts are blank, a text cannot be stored, or a header leaves
    fewer than 16 tokens for the body.
    """
    for _, text in messages:
        _checked_bytes(text, 0)
    spoken = [(role.capitalize(), text) for role, text in messages if text.strip()]
    if not spoken:
        raise ConfigError(_EMPTY)
    stamp = _stamp(when)
    spans = (
        _Span(span, role, opens=i == 0)
        for role, text in spoken
        for i, span in enumerate(_spans([text], chunk_tokens * _CHARS_PER_TOKEN))
    )
    packer = _Packer(spans, lambda role: f"{stamp}{role}: ", tokenize, chunk_tokens)
    return list(iter(packer.next_chunk, None))


def document_sections(
    text: str | Iterable[str],
    source: str | None,
    when: datetime,
    tokenize: Tokenize,
    chunk_tokens: int,
    chunks_per_section: int = 16,
) -> Iterator[list[ChunkText]]:
    """The sections of a document, each at most `chunks_per_section` chunks, as they are cut.

    All bodies joined are the text exactly. A stream of strings is cut as the joined string would
    be, in memory that does not grow with it. Every chunk is headed `[source] `, without a source
    `[2026-11-20 14:05] `. A section ends at a paragraph where its last quarter has one.
    Raises `ConfigError` (at the first section, or when a stream reaches the fault) for a blank
    document, a text that cannot be stored, or a header that leaves fewer than 16 tokens.
    """
    if chunks_per_section < 1:
        raise ConfigError(f"chunks_per_section={chunks_per_section}: use 1 or more.")
    header = _stamp(when) if source is None else f"[{_short_source(source)}] "
    spans = _spans(_blocks(text), chunk_tokens * _CHARS_PER_TOKEN)
    packer = _Packer(map(_Span, spans), lambda role: header, tokenize, chunk_tokens)
    may_close = chunks_per_section * 3 // 4
    section: list[ChunkText] = []
    while chunk := packer.next_chunk(to_paragraph=len(section) == chunks_per_section - 1):
        section.append(chunk)
        full = len(section) == chunks_per_section
        if full or (len(section) >= may_close and _PARAGRAPH_END.search(chunk.body)):
            yield section
            section = []
    if section:
        yield section


class _Packer:
    """Fills chunks greedily with spans; every chunk is tokenized as a whole before it leaves.

    Counts of single spans only estimate the chunk's count (tokens may join or part at the seams),
    so an overfull chunk gives some back.
    """

    def __init__(
        self,
        spans: Iterator[_Span],
        header_of: Callable[[str], str],  # role -> header
        tokenize: Tokenize,
        chunk_tokens: int,
    ) -> None:
        self._spans, self._header_of = spans, header_of
        self._tokenize, self._chunk_tokens = tokenize, chunk_tokens
        self._waiting: deque[_Span] = deque()
        self._rooms: dict[str, int] = {}  # by header: tokens left for the body

    def next_chunk(self, to_paragraph: bool = False) -> ChunkText | None:
        """The next chunk, or None at the end; on request cut back to its last paragraph border."""
        first = self._peek()
        if first is None:
            return None
        header = self._header_of(first.role)
        taken = self._take(self._room(header))
        if to_paragraph and self._peek() is not None:
            self._back_to_paragraph(taken)
        while True:
            body = _join(taken)
            ids = self._tokenize([header + body])[0]
            if len(ids) <= self._chunk_tokens:
                return ChunkText(header, body, tuple(ids))
            self._shrink(taken, len(ids))

    def _peek(self) -> _Span | None:
        if not self._waiting and (spans := list(islice(self._spans, _SPANS_PER_BATCH))):
            self._waiting.extend(self._counted(spans))
        return self._waiting[0] if self._waiting else None

    def _counted(self, spans: list[_Span]) -> list[_Span]:
        # A closing space usually joins the token of the next word: counted here and there, it
        # would leave about one token a sentence unused.
        counts = self._tokenize([span.text[:1] + span.text[1:].removesuffix(" ") for span in spans])
        return [replace(s, tokens=max(1, len(ids))) for s, ids in zip(spans, counts, strict=True)]

    def _room(self, header: str) -> int:
        if header not in self._rooms:
            used = len(self._tokenize([header])[0])
            room = self._chunk_tokens - used
            if room < _MIN_BODY_TOKENS:
                raise ConfigError(
                    f"The header {header!r} takes {used} of chunk_tokens={self._chunk_tokens} and "
                    f"leaves {max(room, 0)} for the text; {_MIN_BODY_TOKENS} are needed. Set "
                    f"chunk_tokens to {used + _MIN_BODY_TOKENS} or more."
                )
            self._rooms[header] = room
        return self._rooms[header]

    def _take(self, room: int) -> list[_Span]:
        """Whole spans that fit; one is cut only where the chunk would stay less than half full."""
        taken: list[_Span] = []
        left = room
        while (span := self._peek()) is not None:
            label = len(self._tokenize([f"\n{span.role}:"])[0]) if taken and span.opens else 0
            fits = left - label
            if span.tokens > fits and (2 * fits < room or (taken and len(span.text) == 1)):
                break
            self._waiting.popleft()
            if span.tokens > fits and len(span.text) > 1:
                self._waiting.extendleft(reversed(self._cut(span, fits)))
                continue
            taken.append(span)
            left = fits - span.tokens
        return taken

    def _back_to_paragraph(self, taken: list[_Span]) -> None:
        ends = [i for i, span in enumerate(taken, 1) if _PARAGRAPH_END.search(span.text)]
        while ends and len(taken) > ends[-1]:
            self._waiting.appendleft(taken.pop())

    def _shrink(self, taken: list[_Span], size: int) -> None:
        """Give back the end of a chunk of `size` tokens; a span is cut where half would go."""
        estimate = sum(span.tokens for span in taken)
        fits = estimate * self._chunk_tokens // size  # below the estimate: size is too large
        while estimate > fits:
            estimate -= taken[-1].tokens
            self._waiting.appendleft(taken.pop())
        if not taken or (2 * estimate < fits and len(self._waiting[0].text) > 1):
            head, self._waiting[0] = self._cut(self._waiting[0], fits - estimate)
            taken.append(head)

    def _cut(self, span: _Span, room: int) -> list[_Span]:
        """Two spans, the first of about `room` tokens."""
        if len(span.text) == 1:
            raise ConfigError(
                f"The character U+{ord(span.text):04X} alone overflows "
                f"chunk_tokens={self._chunk_tokens}. Set chunk_tokens higher."
            )
        about = len(span.text) * room // span.tokens
        at = _word_cut(span.text, min(max(1, about), len(span.text) - 1))
        head, tail = replace(span, text=span.text[:at]), replace(span, text=span.text[at:])
        return self._counted([head, replace(tail, opens=False)])


def _join(spans: Sequence[_Span]) -> str:
    inside = (f"\n{s.role}: {s.text}" if s.opens else s.text for s in spans[1:])
    return spans[0].text + "".join(inside)


def _spans(blocks: Iterable[str], longest: int) -> Iterator[str]:
    """Sentences and lines of at most `longest` characters; joined they are the text again.

    Where a span ends depends on the text alone, not on how it came in blocks.
    """
    stream = iter(blocks)
    buffer, at, ended = "", 0, False
    while True:
        while not ended and len(buffer) - at <= longest:
            block = next(stream, None)
            ended = block is None
            start = max(0, at - _LOOKBEHIND_CHARS)
            buffer, at = buffer[start:] + (block or ""), at - start
        if at == len(buffer):
            return
        end = _span_end(buffer, at, longest)
        yield buffer[at:end]
        at = end


def _span_end(buffer: str, at: int, longest: int) -> int:
    border = BORDER.search(buffer, at, at + longest)
    if border:
        return border.end()
    if len(buffer) - at <= longest:
        return len(buffer)
    return at + _word_cut(buffer[at : at + longest], longest)


def _word_cut(text: str, limit: int) -> int:
    """Where to cut within `limit` characters: after the last whitespace, else at the limit."""
    head = text[:limit]
    if head[-1].isspace():
        return limit
    return limit - len(head.rsplit(None, 1)[-1]) or limit


def _blocks(text: str | Iterable[str]) -> Iterator[str]:
    """The text in checked blocks; blank beginnings are held back until something follows."""
    held: list[str] = []
    size, offset, blank = 0, 0, True
    for part in _slices(text) if isinstance(text, str) else text:
        held.append(part)
        size += len(part)
        blank = blank and not part.strip("\ufeff").strip()
        if size >= _BLOCK_CHARS and not blank:
            block = "".join(held)
            checked = _checked_bytes(block, offset)
            yield block if offset else block.removeprefix("\ufeff")
            held, size, offset = [], 0, offset + checked
    block = "".join(held)
    _checked_bytes(block, offset)
    if blank:
        raise ConfigError(_EMPTY)
    yield block if offset else block.removeprefix("\ufeff")


def _slices(text: str) -> Iterator[str]:
    for start in range(0, len(text), _BLOCK_CHARS):
        yield text[start : start + _BLOCK_CHARS]


def _checked_bytes(text: str, offset: int) -> int:
    """UTF-8 bytes of the text; refuses what no bank can keep, counting from byte `offset`."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        at = offset + len(text[: exc.start].encode())
        raise ConfigError(
            f"The text holds half a surrogate pair at byte {at}. Remove it and try again."
        ) from None
    nul = text.find("\0")
    if nul >= 0:
        at = offset + len(text[:nul].encode())
        raise ConfigError(
            f"The text holds a NUL character at byte {at}. Remove it, or convert UTF-16 to UTF-8, "
            "and try again."
        )
    return size


def _stamp(when: datetime) -> str:
    utc = when.astimezone(UTC) if when.tzinfo else when
    return f"[{utc.isoformat(sep=' ', timespec='minutes')[:16]}] "


def _short_source(source: str) -> str:
    """The last path component, 40 characters at most, safe between brackets."""
    name = re.split(r"[/\\]", source.rstrip("/\\ "))[-1].strip()
    if len(name) > _SOURCE_CHARS:
        name = name[: _SOURCE_CHARS - 3].rstrip() + "..."
    return _UNSAFE_IN_SOURCE.sub("_", name) or "document"
