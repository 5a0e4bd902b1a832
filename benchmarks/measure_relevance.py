"""What recall finds, and finds most relevant: facts that were said and facts that were read.

In: facts made here, half of them told in a chat, half written into passages of a text that is read
after them. Out: a line for each worth of what was said, where the fact stands and who is asked
about: questions, those whose most relevant chunk holds the answer, those with the answer among
what is recalled, chunks a question. No model answers.
`python benchmarks/measure_relevance.py --text NOVEL.txt` gave `SAID` in
`memlong_agent/memory/recall.py`. A minute a seed and novel.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memlong_agent import MemLong
from memlong_agent.memory import recall
from memlong_agent.memory.asking import is_first_person
from memlong_agent.training.facts import Fact, is_exact, make_facts

FACTS, USER = 100, "user-1"
PASSAGE = 80  # words of the text around a fact that is read


@dataclass
class Count:
    """Of the questions of one kind."""

    asked: int = 0
    first: int = 0
    found: int = 0
    chunks: int = 0

    def ask(self, ml: MemLong, fact: Fact) -> None:
        """Search for one more, and count what comes back."""
        hits = ml.memories(user_id=USER).search(fact.ask)
        right = [is_exact(hit.text, fact.answer, ()) for hit in hits]
        self.asked += 1
        self.first += any(right[:1])
        self.found += any(right)
        self.chunks += len(hits)

    def line(self) -> str:
        """What is printed."""
        return (
            f"{self.asked} questions, most relevant right {self.first / self.asked:.1%}, "
            f"found {self.found / self.asked:.1%}, chunks {self.chunks / self.asked:.2f}"
        )


def passages(facts: Sequence[Fact], text: str, rng: random.Random) -> list[str]:
    """Each fact in the middle of words of the text."""
    words = text.split()
    found = []
    for fact in facts:
        at = rng.randrange(len(words) - PASSAGE)
        half = at + PASSAGE // 2
        found.append(" ".join([*words[at:half], fact.tell, *words[half : at + PASSAGE]]))
    return found


def filled(ml: MemLong, facts: Sequence[Fact], text: str, rng: random.Random) -> None:
    """Tell the first half of the facts, read the second half and the text."""
    memories = ml.memories(user_id=USER)
    half = len(facts) // 2
    for fact in facts[:half]:
        reply = {"role": "assistant", "content": f"Noted: {fact.restated}"}
        memories.add([{"role": "user", "content": fact.tell}, reply])
    for number, passage in enumerate(passages(facts[half:], text, rng)):
        memories.add(passage, source=f"passage {number}")
    memories.add(text, source="text")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="a novel, UTF-8")
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 32, 33, 34])
    parser.add_argument("--said", type=float, nargs="+", default=[0.0, 0.03, 0.05, 0.1, 0.2])
    options = parser.parse_args()
    counts: dict[tuple[str, str, float], Count] = defaultdict(Count)
    for seed in options.seeds:
        facts, rng = make_facts(FACTS, seed), random.Random(seed)
        rng.shuffle(facts)
        with MemLong(bank=":memory:") as ml:
            filled(ml, facts, options.text.read_text(encoding="utf-8"), rng)
            for number, fact in enumerate(facts):
                held = "said" if number < FACTS // 2 else "read"
                person = "first" if is_first_person(fact.ask) else "third"
                for worth in options.said:
                    recall.SAID = worth
                    counts[held, person, worth].ask(ml, fact)
    for (held, person, worth), count in sorted(counts.items()):
        sys.stdout.write(f"fact {held}, {person} person, worth {worth:g}: {count.line()}\n")


if __name__ == "__main__":
    main()
