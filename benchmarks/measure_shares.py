"""Which share of the best cosine to keep: right chunks kept against chunks recalled.

In: facts made here among prose of the standard library, or facts of a file. Out: a line a share.
`python benchmarks/measure_shares.py [--facts-file F.jsonl]` gave the value in `SHARES_OF_BEST`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from memlong_agent.embedding import resolve_embedder
from memlong_agent.memory import mean_vectors
from memlong_agent.training.facts import Fact, make_facts
from memlong_agent.training.prose import prose_chunks

SHARES = (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TOP_K, PROSE, FACTS, SEEDS = 8, 600, 100, (1, 2)


def told_and_asked(facts_file: Path | None) -> list[list[tuple[tuple[str, str], str]]]:
    """(message and reply, question) pairs, a list for each life they belong to."""
    lives = [make_facts(FACTS, seed) for seed in SEEDS]
    if facts_file is not None:
        found = map(json.loads, facts_file.read_text().splitlines())
        lives = [[Fact(key="", **fact) for fact in found]]
    return [[((one.tell, f"Noted: {one.restated}"), one.ask) for one in facts] for facts in lives]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts-file", type=Path, help="tell and ask, one JSON object a line")
    parser.add_argument("--embedder", default="minilm")
    options = parser.parse_args()
    embedder = resolve_embedder(options.embedder)
    prose = embedder.embed_texts(prose_chunks(0)[:PROSE])
    kept: dict[float, list[bool]] = {share: [] for share in SHARES}
    counts: dict[float, list[int]] = {share: [] for share in SHARES}
    for pairs in told_and_asked(options.facts_file):
        said = [part for exchange, _ in pairs for part in exchange]
        told = mean_vectors(embedder.embed_texts(said), [2] * len(pairs))
        asked = np.stack([embedder.embed_query(ask) for _, ask in pairs])
        cosines = asked @ np.concatenate([told, prose]).T  # (questions, chunks)
        for n, row in enumerate(cosines):
            nearest = np.sort(row)[::-1][:TOP_K]
            for share in SHARES:
                floor = max(embedder.threshold, share * row.max())
                counts[share].append(int((nearest >= floor).sum()))
                kept[share].append(bool(row[n] >= max(floor, nearest[-1])))
    for share in SHARES:
        right, chunks = np.mean(kept[share]), np.mean(counts[share])
        sys.stdout.write(f"share {share}: right chunk kept {right:.1%}, chunks {chunks:.1f}\n")


if __name__ == "__main__":
    main()
