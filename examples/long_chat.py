"""A long chat: facts told once, a long text read after them, every fact asked in a new process.

    python examples/long_chat.py                     20 facts, Python's language reference between
    python examples/long_chat.py --book novel.txt --facts 100 --save-replies replies.jsonl

This file starts two processes. The first tells the facts in chat, reads the text into the same bank
and ends. The second is given the questions, no fact and no text; it asks each in a fresh session,
with memory and without. Orders go in as JSON on stdin, reports come out as JSON lines on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

import memlong_agent  # its MemLong, and with it torch, loads on first use: not in the parent
from memlong_agent import ConfigError, MemLongError
from memlong_agent.training.facts import Fact, is_exact, make_facts, normalize

Reports = Generator[dict[str, Any], None, None]
PHASES = {
    "start": "Starting two processes",
    "tell": "Telling the facts",
    "read": "Reading the text",
    "ask": "Asking in a new process",
    "ask_memory_off": "Asking with memory off",
}
REPLY_TOKENS = 96  # of the longest reply


def report(phase: str, done: int, **values: Any) -> None:
    """Say to the parent that a step of a phase is done."""
    line = json.dumps({"phase": phase, "done": done, **values})
    print(line, file=sys.__stdout__, flush=True)


def work(process: str) -> int:
    """The life of one of the two processes; returns its exit status."""
    sys.stdout = sys.stderr  # what a library prints is not a report
    orders = json.load(sys.stdin)
    try:
        with memlong_agent.MemLong(orders["model"], bank=orders["bank"]) as ml:
            held = sum(owner.memories for owner in ml.stats().values())
            report("start", 1 if process == "tell" else 2, pid=os.getpid(), held=held)
            (tell_and_read if process == "tell" else ask)(ml, orders)
    except MemLongError as exc:
        report("error", 0, text=str(exc))
        return 2
    return 0


def tell_and_read(ml: memlong_agent.MemLong, orders: dict[str, Any]) -> None:
    """Every user tells their facts in one session, then reads their part of the text."""
    for number, (user, text) in enumerate(orders["tells"], start=1):
        reply = ml.session("A", user_id=user).chat(text, max_tokens=REPLY_TOKENS)
        report("tell", number, reply=reply.text)
    before = 0  # characters read by earlier users
    for user, source, text in orders["reading"]:

        def on_progress(chars: int, before: int = before) -> None:
            report("read", before + chars)

        memories = ml.memories(user_id=user).add(text, source=source, on_progress=on_progress)
        before += len(text)
        report("read", before, user=user, tokens=sum(memory.tokens for memory in memories))


def ask(ml: memlong_agent.MemLong, orders: dict[str, Any]) -> None:
    """Ask everything twice, each time in a session that has seen nothing and leaves nothing."""
    for memory, phase in ((True, "ask"), (False, "ask_memory_off")):
        for number, (user, question) in enumerate(orders["asks"], start=1):
            session = ml.session(f"{phase}-{number}", user_id=user)
            reply = session.chat(question, memory=memory, write=False, max_tokens=REPLY_TOKENS)
            report(
                phase,
                number,
                reply=reply.text,
                prompt=ml.engine.tokenizer.decode(list(reply.prompt_ids)),
                prompt_tokens=len(reply.prompt_ids),
                attention_mass=reply.attention_mass,
                recalled=[each.model_dump(mode="json") for each in reply.recalled],
            )


def reports_of(process: str, **orders: Any) -> Reports:
    """Start a process, give it its orders, and yield its reports. MemLongError when it fails."""
    command = [sys.executable, str(Path(__file__).resolve()), "--process", process]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(command, stderr=log, **pipes) as child,
    ):
        assert child.stdin and child.stdout  # both are pipes
        with suppress(BrokenPipeError), child.stdin:  # one that died at once says why in its log
            json.dump(orders, child.stdin)
        for line in child.stdout:
            found = json.loads(line)
            if found["phase"] == "error":
                raise MemLongError(found["text"])
            yield found
        if status := child.wait():
            log.seek(0)
            raise MemLongError(
                f"{''.join(log.readlines()[-15:])}The process that was to {process} ended with "
                f"status {status}. Correct what its last lines name, and run again."
            )


@dataclass
class Chat:
    """What the two processes have reported; shows it and keeps it."""

    facts: list[Fact]
    view: Console
    bars: Progress
    tasks: dict[str, TaskID]
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    reports: defaultdict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def follow(self, reports: Reports) -> None:
        """Take the reports of one process; the time before a report belongs to its phase."""
        before = time.perf_counter()
        with closing(reports):
            for each in reports:
                phase, now = each.pop("phase"), time.perf_counter()
                self.seconds[phase] = round(self.seconds[phase] + now - before, 3)
                before = now
                self.bars.update(self.tasks[phase], completed=each["done"])
                if phase not in self.reports:
                    self.view.print(f"\n[bold]{PHASES[phase]}[/]")
                self.reports[phase].append(each)
                if phase == "start":
                    pid, held = each["pid"], each["held"]
                    self.view.print(f"Process {pid} is ready; the bank holds {held} memories.")
                elif phase != "read":
                    self.take(phase, each, self.facts[each["done"] - 1])

    def take(self, phase: str, each: dict[str, Any], fact: Fact) -> None:
        """Judge and show one reply."""
        if phase == "tell":
            self.show(f"{fact.user}: {fact.tell}", each["reply"], "dim")
            return
        answers = [other.answer for other in self.facts]
        each["exact"] = is_exact(each["reply"], fact.answer, answers)
        each["leaked"] = f" {normalize(fact.answer)} " in f" {normalize(each['prompt'])} "
        if phase == "ask":
            verdict = "exact" if each["exact"] else f"not exact, it is: {fact.answer}"
            color = "green" if each["exact"] else "red"
            self.show(f"{fact.user}: {fact.ask}", f"{each['reply']} ({verdict})", color)
            self.show(*recalled_first(each["recalled"]), "dim")

    def show(self, first: str, then: str, style: str) -> None:
        self.view.print(f"{escape(first)}\n  [{style}]{escape(then)}[/]")

    def numbers(self, bank: Path) -> dict[str, Any]:
        """The run in numbers; those of prompts are over the questions, with memory on and off."""
        on, off = self.reports["ask"], self.reports["ask_memory_off"]
        tokens = dict.fromkeys((fact.user for fact in self.facts), 0)
        for each in self.reports["read"]:
            if "user" in each:
                tokens[each["user"]] += each["tokens"]
        return {
            "facts": len(self.facts),
            "users": len(tokens),
            "recalled_exact": sum(each["exact"] for each in on),
            "memory_off_exact": sum(each["exact"] for each in off),
            "memory_tokens_between": sum(tokens.values()),
            "memory_tokens_between_each": min(tokens.values()),
            "prompt_tokens_max": max(each["prompt_tokens"] for each in on + off),
            "fact_text_in_prompt": sum(
                a["leaked"] or b["leaked"] for a, b in zip(on, off, strict=True)
            ),
            "seconds_by_phase": self.seconds,
            "bank_bytes": sum(file.stat().st_size for file in bank.rglob("*") if file.is_file()),
            "pids": [each["pid"] for each in self.reports["start"]],
        }

    def save(self, path: Path) -> None:
        """Every question with both replies and all that was recalled, one JSON object a line."""
        pairs = zip(self.facts, self.reports["ask"], self.reports["ask_memory_off"], strict=True)
        with path.open("w", encoding="utf-8") as file:
            for fact, on, off in pairs:
                line = {**asdict(fact), "memory_on": on, "memory_off": off}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def recalled_first(recalled: list[dict[str, Any]]) -> tuple[str, str]:
    """From when and where the most relevant chunk is, and its text, shortened."""
    if not recalled:
        return "  recalled nothing", ""
    when = recalled[0]["created_at"][:16].replace("T", " ")
    where = recalled[0]["source"] or f"session {recalled[0]['session_id']}"
    text = textwrap.shorten(recalled[0]["text"], 110, placeholder=" ...")
    return f"  recalled from {when} UTC, {where}:", f"  {text}"


def table(numbers: dict[str, Any]) -> Table:
    shown = Table(show_header=False)
    for name, value in numbers.items():
        if isinstance(value, dict):
            value = "\n".join(f"{phase:14} {seconds:8.1f}" for phase, seconds in value.items())
        text = f"{value:,}" if isinstance(value, int) else str(value)
        shown.add_row(name.replace("_", " "), text)
    return shown


def load_facts(path: Path) -> list[Fact]:
    """The facts of a file with one JSON object a line. ConfigError names the line that is wrong."""
    facts = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            texts = {name: found[name] for name in ("user", "tell", "ask", "answer")}
            if not all(map(normalize, texts.values())):
                raise ValueError("a blank text")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(
                f'Line {number} of {path} is not a fact. Write {{"user": ..., "tell": ..., '
                '"ask": ..., "answer": ...} there, each a text with a letter or a digit.'
            ) from None
        facts.append(Fact(**texts, key=f"line {number}"))
    if not facts:
        raise ConfigError(f"{path} has no facts. Write one JSON object a line.")
    return facts


def read_text(path: Path) -> str:
    """A text file as UTF-8, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"Cannot read {path}: {exc}. Give a UTF-8 text file.") from exc


def reading_of(books: list[Path], users: list[str]) -> list[tuple[str, str, str]]:
    """User, source and text: each book is cut into as many parts as there are users."""
    texts = [(path.name, read_text(path)) for path in books]
    if not texts:
        from pydoc_data.topics import topics  # every CPython ships it

        texts = [("Python language reference", "\n\n".join(topics.values()))]
    dealt = [(source, zip(users, cut(text, len(users)), strict=True)) for source, text in texts]
    return [(user, source, part) for source, parts in dealt for user, part in parts]


def cut(text: str, parts: int) -> list[str]:
    """`text` in parts of about the same length, cut where a paragraph ends."""
    borders = [0]
    for part in range(1, parts):
        found = text.find("\n\n", max(borders[-1], len(text) * part // parts))
        borders.append(len(text) if found < 0 else found + 2)
    return [text[start:end] for start, end in zip(borders, [*borders[1:], None], strict=True)]


def run(args: argparse.Namespace, view: Console) -> dict[str, Any]:
    """Tell, read, ask, ask without memory; shows it on `view` and returns the numbers."""
    if args.facts_file:
        facts = load_facts(args.facts_file)
    else:
        facts = make_facts(args.facts, args.seed, split="test", users=args.users)
    users = list(dict.fromkeys(fact.user for fact in facts))
    reading = reading_of(args.book, users)
    if len(users) > 1:
        view.print(f"{len(users)} users: the text is cut into {len(users)} parts, one for each.")
    totals = {**dict.fromkeys(PHASES, len(facts)), "start": 2}
    totals["read"] = sum(len(text) for _, _, text in reading)
    bar_view = view if view.is_terminal else Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="long-chat-") as folder,
        Progress(console=bar_view, transient=True) as bars,
    ):
        tasks = {phase: bars.add_task(PHASES[phase], total=totals[phase]) for phase in PHASES}
        chat, bank = Chat(facts, view, bars, tasks), args.bank or Path(folder)
        place = {"model": args.model, "bank": str(bank)}
        tells, asks = [(f.user, f.tell) for f in facts], [(f.user, f.ask) for f in facts]
        chat.follow(reports_of("tell", **place, tells=tells, reading=reading))
        chat.follow(reports_of("ask", **place, asks=asks))
        if args.save_replies:
            chat.save(args.save_replies)
        return chat.numbers(bank)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tell facts, read a long text, ask the facts.")
    add = parser.add_argument
    add("--facts", type=int, default=20, help="how many to make up (default 20)")
    add("--seed", type=int, default=0, help="of the facts made up (default 0)")
    add("--users", type=int, default=1, help="of the facts made up (default 1)")
    add("--facts-file", type=Path, help="facts to use instead, one JSON object a line")
    add("--book", type=Path, action="append", default=[], help="text to read; may be repeated")
    add("--bank", type=Path, help="folder that is kept (default: a temporary one)")
    add("--model", help="folder or hub name (default: the bundled memlong-tiny)")
    add("--json", action="store_true", help="print the numbers as one JSON line, nothing else")
    add("--save-replies", type=Path, help="write every question with its replies, as JSON lines")
    add("--process", choices=("tell", "ask"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    args = parse()
    if args.process:
        return work(args.process)
    view = Console(stderr=args.json, highlight=False)
    try:
        numbers = run(args, view)
    except (MemLongError, OSError) as exc:
        print(exc, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if args.json:
        print(json.dumps(numbers))
    else:
        view.print(table(numbers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
