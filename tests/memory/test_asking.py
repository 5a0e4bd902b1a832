"""Which of a message's sentences ask, about whom, and where the search looks for the answer."""

from __future__ import annotations

import numpy as np
import pytest
from memory_drafts import Scattered

from memlong_agent.embedding import Vectors
from memlong_agent.memory.asking import asking_part, is_first_person, query_vector

CHATTER = "My coffee is getting cold."
QUESTION = "Which sport does my girlfriend do?"


@pytest.mark.parametrize(
    ("message", "asks"),
    [
        (f"{CHATTER} {QUESTION}", QUESTION),
        (f"{QUESTION} {CHATTER}", QUESTION),
        (f"{CHATTER}\n{QUESTION}\n{CHATTER}", QUESTION),
        (f"How are you? {CHATTER} {QUESTION}", f"How are you? {QUESTION}"),
        ('I ran. "Where did I run to?" It was late.', '"Where did I run to?"'),
        ("_Where did I run to?_ It was late.", "_Where did I run to?_"),
        ("We met Mr. Ito. Who is Mr. Ito's accountant?", "Who is Mr. Ito's accountant?"),
        (QUESTION, ""),
        (f" {QUESTION} Who? ", ""),
        (f"{QUESTION}\n\nWho?", ""),
        (f"{CHATTER} Tell me the sport.", ""),
        ("I'm not sure where the Reeds go. Do you know?", ""),
        ("", ""),
    ],
)
def test_what_asks_are_the_sentences_with_a_question_mark(message: str, asks: str) -> None:
    assert asking_part(message) == asks


def test_a_long_message_of_question_marks_ends() -> None:
    # By the square of its length it would take longer than a test may.
    assert asking_part("?" * 300_000 + "a") == ""
    assert asking_part("?," * 300_000 + "a") == ""


@pytest.mark.parametrize(
    ("message", "first"),
    [
        ("What am I afraid of?", True),
        ("what's MY dog called", True),
        ("Are these ours?", True),
        (f"It rained. {QUESTION}", True),
        ("I'm not sure where the Reeds go. Do you know?", True),
        ("Tell me about Pip.", False),
        (f"{CHATTER} What is Pip afraid of?", False),
        ("How is it in Mystic, Iowa?", False),
        ("", False),
    ],
)
def test_the_first_person_is_who_asks(message: str, first: bool) -> None:
    assert is_first_person(message) is first


def test_what_asks_counts_twice_and_small_talk_once() -> None:
    embedder = Scattered()
    message = f"{CHATTER} {QUESTION}"
    vector = query_vector(embedder, message)
    both = embedder.embed_query(message) + embedder.embed_query(QUESTION)
    assert vector == pytest.approx(both / np.linalg.norm(both), abs=1e-6)
    assert float(vector @ vector) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("message", [QUESTION, f"{CHATTER} Tell me.", "no mark"])
def test_a_message_of_one_kind_is_embedded_as_it_stands(message: str) -> None:
    embedder = Scattered()
    assert np.array_equal(query_vector(embedder, message), embedder.embed_query(message))


def test_the_reply_so_far_is_looked_for_but_its_questions_do_not_ask() -> None:
    embedder = Scattered()
    vector = query_vector(embedder, QUESTION, "Who? You told me: swimming.")
    whole = embedder.embed_query(f"{QUESTION}\nWho? You told me: swimming.")
    assert np.array_equal(vector, whole)


def test_opposite_vectors_leave_the_whole() -> None:
    class Opposite(Scattered):
        def embed_query(self, text: str) -> Vectors:
            return np.array([1.0 if text == QUESTION else -1.0, 0.0], np.float32)

    assert query_vector(Opposite(), f"{CHATTER} {QUESTION}").tolist() == [-1.0, 0.0]
