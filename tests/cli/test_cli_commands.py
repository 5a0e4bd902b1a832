"""Every command does its work, as text for people and as JSON for programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_results import KEY, Run, objects, ok
from click.testing import Result

from memlong_agent.cli import main
from memlong_agent.training.settings import TrainSettings


def listed(memlong: Run, *options: str) -> list[dict[str, Any]]:
    return objects(memlong("list", "--json", *options))


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_with_an_example(memlong: Run, command: str) -> None:
    shown = ok(memlong(command, "--help"))
    assert "Example:\n" in shown
    assert f"\n    memlong {command}" in shown


def test_without_a_command_the_help_is_shown_in_the_order_of_use(memlong: Run) -> None:
    shown = ok(memlong("--help"))
    places = [shown.index(f"\n  {name} ") for name in main.commands]
    assert next(iter(main.commands)) == "chat"
    assert places == sorted(places)


def test_add_remembers_a_file_once(memlong: Run, note: str) -> None:
    assert ok(memlong("add", note)).startswith("Remembered notes.md: 1 section, ")
    [memory] = listed(memlong)
    assert (memory["text"], memory["source"]) == (f"{KEY}\n", "notes.md")
    [again] = objects(memlong("add", note, "--json"))
    assert again == {
        "source": "notes.md",
        "tokens": memory["tokens"],
        "memory_ids": [memory["id"]],
    }
    assert len(listed(memlong)) == 1


def test_add_takes_standard_input_source_and_session(memlong: Run) -> None:
    ok(memlong("add", "-", stdin=KEY))
    ok(memlong("add", "-", "--source", "the house", "--session", "work", stdin=KEY))
    assert {(m["source"], m["session_id"]) for m in listed(memlong)} == {
        (None, "default"),
        ("the house", "work"),
    }


def test_add_remembers_a_text_of_several_sections_whole(memlong: Run, tmp_path: Path) -> None:
    text = "".join(f"Ключ {n} лежит под чайником.\n" for n in range(90))
    (tmp_path / "long.txt").write_text(text)
    ok(memlong("add", "long.txt"))
    memories = listed(memlong)
    assert len(memories) > 1
    assert "".join(memory["text"] for memory in reversed(memories)) == text


def test_search_finds_what_was_added(memlong: Run, noted: str) -> None:
    shown = ok(memlong("search", "where is the spare key"))
    assert noted in shown
    assert KEY in shown
    [found] = objects(memlong("search", "where is the spare key", "--json"))
    assert (found["memory_id"], found["text"].strip()) == (noted, KEY)
    assert 0 < found["score"] <= 1


def test_search_of_another_user_finds_nothing(memlong: Run, noted: str) -> None:
    assert ok(memlong("search", "key", "--user", "anna")) == "Nothing would be recalled.\n"
    assert objects(memlong("search", "key", "--user", "anna", "--json")) == []


def test_list_is_newest_first_limited_and_narrowed(memlong: Run, noted: str) -> None:
    ok(memlong("add", "-", "--session", "work", stdin="The meeting is at nine."))
    assert [memory["session_id"] for memory in listed(memlong)] == ["work", "default"]
    assert [memory["session_id"] for memory in listed(memlong, "--limit", "1")] == ["work"]
    assert [memory["id"] for memory in listed(memlong, "--session", "default")] == [noted]
    assert noted in ok(memlong("list"))
    assert ok(memlong("list", "--user", "anna")) == "There are no memories.\n"


def test_shown_text_is_neither_markup_nor_terminal_control(memlong: Run) -> None:
    ok(memlong("add", "-", stdin="[bold]Rex[/bold] \x1b[2J [/nonsense] and :smile:"))
    shown = ok(memlong("list"))
    assert "[bold]Rex[/bold] \N{REPLACEMENT CHARACTER}[2J [/nonsense] and :smile:" in shown


def test_forget_by_id(memlong: Run, noted: str) -> None:
    ok(memlong("add", "-", stdin="The meeting is at nine."))
    assert ok(memlong("forget", noted)) == "Forgot 1 memory.\n"
    [other] = listed(memlong)
    assert objects(memlong("forget", other["id"], "--json")) == [{"forgotten": 1, "mentions": []}]
    assert listed(memlong) == []


def test_forget_by_text_asks_first_and_names_mentions(memlong: Run, noted: str) -> None:
    chatted(memlong, "Where is the spare key?")
    declined = memlong("forget", "--text", "SPARE  key is", stdin="n\n")
    assert declined.exit_code == 1 and "that contains 'SPARE  key is'" in declined.stderr
    [found] = objects(memlong("forget", "--text", "SPARE  key is", "--yes", "--json"))
    left = [memory["id"] for memory in listed(memlong)]
    assert found == {"forgotten": 1, "mentions": left} and noted not in left


def test_forget_an_owner(memlong: Run, noted: str) -> None:
    assert ok(memlong("forget", "--owner", "--yes")) == "Forgot 1 memory.\n"
    assert objects(memlong("stats", "--json"))[0]["owners"] == []


@pytest.mark.parametrize(
    "options",
    [(), ("--all", "--owner"), ("x", "--text", "y"), ("--text", "y", "--session", "s")],
)
def test_forget_takes_one_way(memlong: Run, options: tuple[str, ...]) -> None:
    refused = memlong("forget", *options)
    assert refused.exit_code == 2 and "Traceback" not in refused.stderr


def test_forget_all_asks_first(memlong: Run, noted: str) -> None:
    declined = memlong("forget", "--all", stdin="n\n")
    assert declined.exit_code == 1
    assert "Nothing was forgotten." in declined.stderr
    assert len(listed(memlong)) == 1
    agreed = memlong("forget", "--all", "--json", stdin="y\n")
    assert (agreed.exit_code, json.loads(agreed.stdout)) == (0, {"forgotten": 1, "mentions": []})


def test_forget_all_of_a_session_leaves_the_others(memlong: Run, noted: str) -> None:
    ok(memlong("add", "-", "--session", "work", stdin="The meeting is at nine."))
    assert ok(memlong("forget", "--all", "--yes", "--session", "work")) == "Forgot 1 memory.\n"
    assert [memory["id"] for memory in listed(memlong)] == [noted]
    assert ok(memlong("forget", "--all", "--yes")) == "Forgot 1 memory.\n"


def test_stats_by_owner(memlong: Run, noted: str, environment: dict[str, str]) -> None:
    [found] = objects(memlong("stats", "--json"))
    [owner] = found["owners"]
    assert found["bank"] == environment["MEMLONG_BANK"]
    assert (owner["name"], owner["kind"]) == ("me", "user")
    assert (owner["memories"], owner["chunks"]) == (1, 1)
    assert owner["nbytes"] > 4096  # one header and the K/V of some tokens
    shown = ok(memlong("stats"))
    assert f"{owner['nbytes']:,}" in shown


def test_stats_of_a_new_bank(memlong: Run) -> None:
    assert ok(memlong("stats", "--bank", "new")) == "The bank at new is empty.\n"


def test_doctor_finds_a_bank_healthy(memlong: Run, noted: str) -> None:
    [found] = objects(memlong("doctor", "--json"))
    assert found["healthy"] is True
    assert (found["memories"], found["problems"]) == (1, [])
    assert found["logit_difference"] > 0
    assert found["retrieval"]["embedder"] == "hash"
    assert ok(memlong("doctor")).rstrip().endswith("healthy")


def test_doctor_exits_with_1_when_a_file_is_missing(
    memlong: Run, noted: str, environment: dict[str, str]
) -> None:
    [file] = Path(environment["MEMLONG_BANK"]).rglob("*.safetensors")
    file.unlink()
    result = memlong("doctor")
    assert result.exit_code == 1
    assert "not healthy" in result.stdout
    [problem, *_] = json.loads(memlong("doctor", "--json").stdout)["problems"]
    assert file.name in problem


def test_train_of_no_steps_makes_a_usable_folder(memlong: Run, model: Path, tmp_path: Path) -> None:
    # With a tokenizer in the folder none is trained, which is what takes the time.
    (tmp_path / "tiny").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, tmp_path / "tiny" / name)
    options = ["train", "--out", "tiny", "--base-steps", "0", "--memory-steps", "0", "--seed", "3"]
    assert "memlong chat --model tiny" in ok(memlong(*options))
    (printed,) = objects(memlong(*options, "--json"))
    assert printed["out"] == "tiny" and set(printed["scores"].values()) == {0.0}
    record = json.loads((tmp_path / "tiny" / "training.json").read_text())
    assert record["settings"]["seed"] == 3
    assert record["settings"]["batch_rows"] == TrainSettings().batch_rows
    assert listed(memlong, "--model", "tiny") == []


def chatted(memlong: Run, *lines: str, options: tuple[str, ...] = ()) -> Result:
    text = "".join(f"{line}\n" for line in lines)
    return memlong("chat", "--max-tokens", "6", *options, stdin=text)


def test_chat_answers_line_by_line_and_remembers(memlong: Run) -> None:
    assert ok(chatted(memlong, "My dog is Rex.", "", "What is my dog called?")).count("\n") >= 2
    said = [memory["text"].split("\n")[0] for memory in listed(memlong)]
    assert said == ["User: What is my dog called?", "User: My dog is Rex."]


def test_chat_as_json_is_one_object_a_turn(memlong: Run, noted: str) -> None:
    lines = ("Where is the spare key?", "/recalls", "/memories", f"/forget {noted}")
    reply, recalls, memories, forgotten = objects(chatted(memlong, *lines, options=("--json",)))
    assert reply["usage"]["completion_tokens"] <= 6
    assert [recall["memory_id"] for recall in reply["recalled"]] == [noted]
    assert recalls == {"recalled": reply["recalled"]}
    assert 0 < recalls["recalled"][0]["attention_mass"] < 1
    assert {memory["id"] for memory in memories["memories"]} == {noted, *reply["memory_ids"]}
    assert forgotten == {"forgotten": 1, "mentions": reply["memory_ids"]}


def test_chat_shows_recalls_and_forgets(memlong: Run, noted: str) -> None:
    lines = ("/recalls", "Where is the spare key?", "/recalls", f"/forget {noted}", "/quit", "No.")
    shown = ok(chatted(memlong, *lines))
    assert shown.startswith("The last reply recalled nothing.\n")
    assert noted in shown
    (turn,) = listed(memlong)  # about the key; nothing was said after /quit
    assert "Forgot 1 memory.\nRecalled in 1 exchange that may repeat it" in shown
    assert shown.endswith(f"  /forget {turn['id']}\n")


def test_chat_without_memory_or_writing(memlong: Run, noted: str) -> None:
    question = "Where is the spare key?"
    [off] = objects(chatted(memlong, question, options=("--json", "--no-memory", "--no-write")))
    assert (off["recalled"], off["memory_ids"]) == ([], [])
    [on] = objects(chatted(memlong, question, options=("--json", "--no-write")))
    assert [recall["memory_id"] for recall in on["recalled"]] == [noted]
    assert [memory["id"] for memory in listed(memlong)] == [noted]


def test_chat_sampling_repeats_under_a_seed(memlong: Run) -> None:
    def reply(seed: str) -> str:
        options = ("--temperature", "5", "--seed", seed, "--no-write", "--system", "Be brief.")
        return ok(chatted(memlong, "Hello.", options=options))

    assert reply("1") == reply("1")
    assert reply("1") != reply("2")


def test_chat_help_goes_to_people_only(memlong: Run) -> None:
    result = chatted(memlong, "/help")
    assert (result.exit_code, result.stdout) == (0, "")
    for name in ("/recalls", "/memories", "/forget ID", "/help", "/quit"):
        assert name in result.stderr
