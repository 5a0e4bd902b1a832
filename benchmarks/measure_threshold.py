"""Below which cosine is a memory not worth recalling? Measures it for one embedder.

    python benchmarks/measure_threshold.py --text novel.txt --embedder minilm

Makes facts and questions about them, tells every fact as an exchange (alone, or among sentences of
the text), and prints the cosine that 99 % of the true fact/question pairs reach, how much of the
text's own prose would pass it, and the same for wrong facts. The text is any plain prose.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memlong_agent.embedding import resolve_embedder
from memlong_agent.memory import mean_vectors

PEOPLE = ("sister", "brother", "mother", "father", "aunt", "uncle", "neighbor", "teacher", "boss")
ATTRIBUTES = {  # attribute: (kind of value, way to ask)
    "nickname": ("name", "What is my {who}'s nickname?"),
    "dog": ("name", "What is the name of my {who}'s dog?"),
    "home town": ("name", "Where is my {who} from?"),
    "employer": ("name", "Who does my {who} work for?"),
    "favorite tea": ("name", "Which tea does my {who} like best?"),
    "boat": ("name", "Do you remember what my {who}'s boat is called?"),
    "locker code": ("number", "What is the code of my {who}'s locker?"),
    "flat": ("number", "What number is my {who}'s flat?"),
    "train": ("number", "Which train does my {who} take?"),
    "badge": ("number", "Tell me my {who}'s badge number."),
}
TELLINGS = (
    "My {who}'s {what} is {value}.",
    "By the way, my {who}'s {what} is {value}.",
    "Please remember that the {what} of my {who} is {value}.",
    "{value} is my {who}'s {what}.",
)
ANSWERS = ("Noted.", "Thank you, I will remember that.", "Got it: {value}.")
SYLLABLES = ("ba", "ce", "di", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "kla", "bro", "sta")


def make_pairs(count: int, sentences: list[str], rng: random.Random) -> list[tuple[str, str, str]]:
    """(question, message and reply of the right chunk); half of the facts stand among prose."""
    pairs = []
    for i in range(count):
        who, what = rng.choice(PEOPLE), rng.choice(sorted(ATTRIBUTES))
        kind, question = ATTRIBUTES[what]
        name = "".join(rng.choices(SYLLABLES, k=3)).capitalize()
        value = name if kind == "name" else str(rng.randrange(100, 10_000))
        told = rng.choice(TELLINGS).format(who=who, what=what, value=value)
        if i % 2:
            around = rng.sample(sentences, 2)
            told = f"{around[0]} {told} {around[1]}"
        answer = rng.choice(ANSWERS).format(value=value)
        pairs.append((question.format(who=who), told, answer))
    return pairs


def report(
    name: str,
    true: NDArray[np.float32],
    wrong: NDArray[np.float32],
    prose: NDArray[np.float32],
) -> str:
    at = float(np.quantile(true, 0.01))
    return (
        f"{name:<18} 99 % reach {at:6.3f}   median {np.median(true):6.3f}   passing there: "
        f"{np.mean(wrong >= at):.1%} of wrong facts, {np.mean(prose >= at):.1%} of prose"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="plain prose, UTF-8")
    parser.add_argument("--embedder", default="minilm", help="minilm, hash, a folder or a model id")
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()

    rng = random.Random(options.seed)
    flat = re.sub(r"\s+", " ", options.text.read_text(encoding="utf-8"))
    sentences = [s for s in re.split(r"(?<=[.!?]) ", flat) if 40 <= len(s) <= 200]
    passages = [flat[i : i + 450] for i in range(0, len(flat), 450)]
    pairs = make_pairs(options.pairs, sentences, rng)
    embedder = resolve_embedder(options.embedder, None)

    questions = np.stack([embedder.embed_query(question) for question, *_ in pairs])
    said = [part for _, *exchange in pairs for part in exchange]
    facts = mean_vectors(embedder.embed_texts(said), [2] * len(pairs))
    prose = embedder.embed_texts(rng.sample(passages, min(len(passages), options.pairs)))
    against_facts, against_prose = questions @ facts.T, questions @ prose.T  # all against all
    true = np.diagonal(against_facts)
    wrong = against_facts[~np.eye(len(pairs), dtype=bool)]
    lines = [
        report("fact alone", true[0::2], wrong, against_prose),
        report("fact among prose", true[1::2], wrong, against_prose),
        report("both", true, wrong, against_prose),
    ]
    sys.stdout.write(f"{options.embedder}, {len(pairs)} pairs\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
