"""How far a chunk of little relevance should stand behind the best: facts answered by strength.

In: facts made here, told to the bundled model among a text. Out: a line a seed and strength, the
facts answered exactly. `python benchmarks/measure_prior.py --text NOVEL.txt --seeds 11 12 13 14`
gave `PRIOR` in `memlong_agent/memory/recall.py`. Minutes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from memlong_agent import MemLong
from memlong_agent.memory import recall
from memlong_agent.training.facts import Fact, is_exact, make_facts

FACTS, MAX_TOKENS = 100, 96


def answered(ml: MemLong, facts: list[Fact]) -> int:
    """Facts whose answer is in the reply, and no other fact's."""
    right = 0
    for number, fact in enumerate(facts):
        asked = ml.session(f"question {number}", user_id=fact.user)
        reply = asked.chat(fact.ask, write=False, max_tokens=MAX_TOKENS)
        right += is_exact(reply.text, fact.answer, [other.answer for other in facts])
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="read after the facts, UTF-8")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14])
    parser.add_argument("--nats", type=float, nargs="+", default=[0.0, 8.0, 14.0, 20.0])
    options = parser.parse_args()
    for seed in options.seeds:
        facts = make_facts(FACTS, seed)
        with MemLong(bank=":memory:") as ml:
            for fact in facts:
                ml.session("told", user_id=fact.user).chat(fact.tell, max_tokens=MAX_TOKENS)
            text = options.text.read_text(encoding="utf-8")
            ml.memories(user_id=facts[0].user).add(text, source=options.text.name)
            for nats in options.nats:
                recall.PRIOR = nats
                sys.stdout.write(f"seed {seed}, {nats:g} nats: {answered(ml, facts)} of {FACTS}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
