"""Chunks against their text: nothing lost, never too long, the same however the text came."""

from __future__ import annotations

import re
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memlong_agent.chunking import ChunkText, clean_text, document_sections, exchange_chunks
from memlong_agent.errors import ConfigError

WHEN = datetime(2026, 11, 20, 14, 5, 59, tzinfo=UTC)
STAMP = "[2026-11-20 14:05] "


def by_byte(texts: list[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


def by_word(texts: list[str]) -> list[list[int]]:
    """Like byte-level BPE: a word takes the space before it; a word has a token per 6 letters."""
    pattern = re.compile(r" ?\w{1,6}|\w{1,6}|[^\w\s]|\s")
    return [[hash(token) for token in pattern.findall(text)] for text in texts]


def by_seam(texts: list[str]) -> list[list[int]]:
    """A tokenizer whose whole is longer than its parts: three more tokens per inner border."""
    return [
        [1] * (len(text.encode()) + 3 * len(re.findall(r"(?<=\S) (?=\S)", text))) for text in texts
    ]


def bodies(sections: Iterator[list[ChunkText]]) -> list[str]:
    return [chunk.body for section in sections for chunk in section]


PROSE = (
    "Mr. Hale was late. She wrote to him at once, and then she waited by\n"
    "the window until it was dark; nobody came.\n\n"
    "“Is it you?” said a voice. It was!\n"
) * 40

TEXTS = st.text(
    st.sampled_from("ab cdE.!?\n\t \r漢。🙂é”'") | st.characters(exclude_categories=["Cs", "Cc"]),
    min_size=1,
    max_size=1500,
).filter(lambda text: bool(text.strip("\ufeff").strip()) and not text.startswith("\ufeff"))


@settings(max_examples=60, deadline=None)
@given(text=TEXTS, size=st.integers(40, 90), tokenize=st.sampled_from([by_byte, by_word, by_seam]))
def test_a_document_is_its_bodies_joined_and_no_chunk_is_too_long(text, size, tokenize):
    sections = list(document_sections(text, "notes.txt", WHEN, tokenize, size, 4))
    assert "".join(bodies(iter(sections))) == text
    assert all(1 <= len(section) <= 4 for section in sections)
    for chunk in (c for section in sections for c in section):
        assert chunk.body
        assert len(chunk.token_ids) <= size
        assert list(chunk.token_ids) == tokenize([chunk.header + chunk.body])[0]


@settings(max_examples=30, deadline=None)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 1500), max_size=20))
def test_a_stream_is_cut_like_the_whole_string(text, cuts):
    text = text * 8
    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[a:b] for a, b in pairwise(borders)]
    whole = list(document_sections(text, None, WHEN, by_byte, 64))
    assert list(document_sections(iter(parts), None, WHEN, by_byte, 64)) == whole


def test_a_block_that_ends_with_a_full_span_is_no_border():
    longest = 4 * 64  # characters of a span
    words = "ab " * (longest // 3) + "a"
    filled = "x" * (65_536 - longest) + words  # a block is 65,536 characters
    for letters in range(0, 120, 5):
        text = filled + "b" * letters + " def. " * 10
        assert bodies(document_sections(text, "b", WHEN, by_byte, 64)) == bodies(
            document_sections([text], "b", WHEN, by_byte, 64)
        )


def test_a_stream_longer_than_a_block_is_cut_like_the_whole_string():
    text = PROSE * 20  # 150 kB: the scanner refills its buffer twice
    lines = text.splitlines(keepends=True)
    whole = bodies(document_sections(text, "b", WHEN, by_word, 48))
    assert bodies(document_sections(lines, "b", WHEN, by_word, 48)) == whole
    assert "".join(whole) == text


MESSAGES = st.lists(
    st.tuples(st.sampled_from(["user", "assistant"]), TEXTS), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(messages=MESSAGES, size=st.integers(64, 128))
def test_an_exchange_loses_nothing(messages, size):
    chunks = exchange_chunks(messages, WHEN, by_byte, size)
    pending = [(role.capitalize(), text) for role, text in messages]
    for chunk in chunks:
        assert len(chunk.token_ids) <= size
        assert list(chunk.token_ids) == by_byte([chunk.header + chunk.body])[0]
        role, rest = pending[0]
        assert chunk.header == f"{STAMP}{role}: "
        body = chunk.body
        while body:
            if not rest:  # the next message begins inside this chunk, under its label
                pending.pop(0)
                role, rest = pending[0]
                assert body.startswith(f"\n{role}: ")
                body = body.removeprefix(f"\n{role}: ")
            shared = min(len(body), len(rest))
            assert body[:shared] == rest[:shared]
            body, rest = body[shared:], rest[shared:]
        pending[0] = (role, rest)
        if not rest:
            pending.pop(0)
    assert not pending


def test_a_short_exchange_is_one_chunk_with_the_agreed_text():
    messages = [("user", "My sister's nickname is Velora."), ("assistant", "Noted.")]
    (chunk,) = exchange_chunks(messages, WHEN, by_byte, 128)
    assert chunk.header == "[2026-11-20 14:05] User: "
    assert chunk.body == "My sister's nickname is Velora.\nAssistant: Noted."


def test_a_chunk_inside_the_reply_is_headed_assistant_and_repeats_no_label():
    messages = [("user", "Tell me. " * 11), ("assistant", "It rains. " * 20)]
    chunks = exchange_chunks(messages, WHEN, by_byte, 128)
    assert [chunk.header for chunk in chunks[:2]] == [f"{STAMP}User: ", f"{STAMP}Assistant: "]
    assert "Assistant:" not in chunks[1].body


def test_a_reply_cut_twice_has_its_label_once():
    chunks = exchange_chunks([("user", "Hi."), ("assistant", "a " + "b" * 300)], WHEN, by_byte, 128)
    assert chunks[0].body.startswith("Hi.\nAssistant: a bbb")
    assert len(chunks[0].token_ids) > 120
    assert "".join(chunk.body for chunk in chunks).count("Assistant") == 1


def test_times_are_written_in_utc_minutes():
    tokyo = datetime(2026, 11, 21, 0, 30, tzinfo=timezone(timedelta(hours=9)))
    assert exchange_chunks([("user", "Hi.")], tokyo, by_byte, 128)[0].header.startswith(
        "[2026-11-20 15:30] "
    )
    naive = WHEN.replace(tzinfo=None)
    assert exchange_chunks([("user", "Hi.")], naive, by_byte, 128)[0].header.startswith(STAMP)


def test_blank_messages_are_left_out():
    (chunk,) = exchange_chunks(
        [("user", "I live in Oslo."), ("assistant", " ")], WHEN, by_byte, 128
    )
    assert chunk.body == "I live in Oslo."
    with pytest.raises(ConfigError, match=r"empty. Pass"):
        exchange_chunks([("user", " \n")], WHEN, by_byte, 128)


@pytest.mark.parametrize(
    ("source", "header"),
    [
        ("/home/ann/notes.md", "[notes.md] "),
        ("C:\\books\\emma.txt", "[emma.txt] "),
        ("https://example.org/a/b/", "[b] "),
        ("a[1]<|user|>\n\x07\u202e.txt", "[a_1__|user|____.txt] "),
        ("x" * 50 + ".txt", "[" + "x" * 37 + "...] "),
        ("/", "[document] "),
        (None, STAMP),
    ],
)
def test_document_headers(source, header):
    ((chunk,),) = document_sections("Hello.", source, WHEN, by_byte, 128)
    assert chunk.header == header


def test_chunks_end_at_sentences_not_at_wrapped_lines_or_titles():
    for size in range(72, 120, 4):
        ends = {body[-2:] for body in bodies(document_sections(PROSE, "b", WHEN, by_word, size))}
        assert ends <= {". ", "? ", "” ", "\n\n", "!\n"}
    body = "He met Mr. Dorrit of the Marshalsea. " * 4
    for chunk in bodies(document_sections(body, "b", WHEN, by_word, 24)):
        assert chunk.endswith("Marshalsea. ")


def test_wrapped_lines_are_known_across_blocks():
    """A line's beginning may lie in the block before; forgetting it made its end a border."""
    for size in range(48, 96, 3):
        filled = 65_536 // (4 * size) * 4 * size  # whole spans in the first block
        text = "x" * filled + "then she\nwent home and slept. " * 20
        assert bodies(document_sections(text, "b", WHEN, by_byte, size)) == bodies(
            document_sections([text], "b", WHEN, by_byte, size)
        )


def test_a_long_sentence_is_cut_at_whitespace_and_a_long_word_at_characters():
    words = "alpha beta gamma " * 60
    assert all(b.endswith(" ") for b in bodies(document_sections(words, "b", WHEN, by_byte, 64)))
    chunks = bodies(document_sections("é" * 500, "b", WHEN, by_byte, 64))
    assert "".join(chunks) == "é" * 500
    assert len(chunks) <= 18  # 1000 bytes at 60 a chunk: no fragments in between
    chunks = bodies(document_sections(". " * 1000, "b", WHEN, by_byte, 64))
    assert len(chunks) <= 50  # every estimate is half the count here; once it gave one ". " a chunk


def test_sections_prefer_paragraph_ends():
    paragraph = "One two three four five six seven. " * 5 + "The end of it.\n\n"
    sections = list(document_sections(paragraph * 60, "b", WHEN, by_byte, 96, 8))
    assert len(sections) > 10
    assert all(section[-1].body.endswith("\n\n") for section in sections)


def test_a_header_that_leaves_too_little_room_is_refused_with_the_numbers():
    with pytest.raises(ConfigError, match=r"takes 25 of chunk_tokens=40 and leaves 15.*41 or more"):
        exchange_chunks([("user", "Hello")], WHEN, by_byte, 40)
    assert exchange_chunks([("user", "Hello")], WHEN, by_byte, 41)
    with pytest.raises(ConfigError, match="chunks_per_section=0"):
        next(document_sections("Hello", "b", WHEN, by_byte, 64, 0))


def test_a_character_that_overflows_a_chunk_is_refused_by_its_code_point():
    def greedy(texts: list[str]) -> list[list[int]]:
        return [[1] * (len(text) + 99 * text.count("\ufdfa")) for text in texts]

    with pytest.raises(ConfigError, match=r"U\+FDFA alone overflows chunk_tokens=64"):
        next(document_sections("ab \ufdfa cd", "b", WHEN, greedy, 64))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"ab\xff", "not valid UTF-8 at byte 2"),
        ("é\ud800", "surrogate pair at byte 2"),
        ("éé\0", "NUL character at byte 4"),
        ("é".encode("utf-16-le") + b"!\0", "byte 0"),
        ("", "empty"),
        (b" \n\t", "empty"),
        ("\ufeff ", "empty"),
    ],
)
def test_texts_that_cannot_be_kept_are_refused_by_byte(text, message):
    with pytest.raises(ConfigError, match=message):
        clean_text(text)


def test_clean_text_decodes_and_drops_the_byte_order_mark():
    assert clean_text("\ufeffé\r\n x ".encode()) == "é\r\n x "
    assert clean_text(" as it is ") == " as it is "


def test_a_stream_names_the_byte_of_a_fault_from_its_beginning():
    parts = ["é" * 70_000, "ok", "bad\0"]
    with pytest.raises(ConfigError, match="byte 140005"):
        list(document_sections(parts, "b", WHEN, by_byte, 64))


def test_a_blank_stream_is_refused_before_any_section():
    with pytest.raises(ConfigError, match="empty"):
        next(document_sections([" " * 100_000, "\n" * 100_000], "b", WHEN, by_byte, 64))
    with pytest.raises(ConfigError, match="surrogate"):
        exchange_chunks([("user", "hi"), ("assistant", "\udc00")], WHEN, by_byte, 64)


@pytest.mark.parametrize("piece", ["x", " ", "a\n", "漢", ". "])
def test_time_grows_with_the_text_and_no_faster(piece):
    """A quadratic scan made a 1 MB line take minutes; here 4x the text may take 12x the time."""

    def seconds(chars: int) -> float:
        parts = (piece * (4096 // len(piece)) for _ in range(chars // 4096))
        started = time.process_time()
        for _ in document_sections(_headed(parts), "b", WHEN, by_byte, 128):
            pass
        return time.process_time() - started

    seconds(40_960)  # warm up
    small = seconds(204_800)
    assert seconds(819_200) < 12 * max(small, 0.02)


def _headed(parts: Iterator[str]) -> Iterator[str]:
    yield "Head. "
    yield from parts


def test_a_stream_is_never_held_whole():
    parts = (PROSE for _ in range(400))  # 3 MB
    tracemalloc.start()
    for _ in document_sections(parts, "b", WHEN, by_byte, 256):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_500_000
