"""The model card of a trained folder: how it was made, what it scored, what it is not for."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from memlong_agent.layout import MemoryLayout

_CARD = """---
license: apache-2.0
library_name: transformers
tags: [memory, memlong]
---
# memlong-tiny

A Llama of {parameters:.1f} M parameters in the `memlong` layout of memlong-agent: it stores K/V of
layer {stored} and reads them in layers {readers} (0-indexed), recalled keys at position 0. It was
trained to confirm what it is told in the user's own words ("Noted: your dog is called Rex."), to
repeat that when it is asked ("You told me: your dog is called Rex."), from its window or from
recalled memory, and to say "I don't know." It is a demonstration and a test instrument: it holds no
knowledge, and must not be used to answer anything else.

## How it was made

`memlong train --out DIR` with the settings in `training.json`: random weights plus a weak copying
circuit (`memlong_agent/training/initial.py`), a base phase of all weights, then a memory phase with
embeddings and layers 0 to {stored} frozen; then both again in each further round, shorter and at
lower rates, more and more on what MiniLM finds, from the fourth on with answers spelled anew
from any piece of the vocabulary, from the fifth on with the loss on replies alone; of the last
round, if it is one of these, the mean of three points is published. Data: facts and dialogues
invented by `memlong_agent.training`, everyday sentences written for it (`everyday.txt`), and
docstrings of CPython {python}; torch {torch}. No other text. Values are split by hash into train
and test. The run is in `training_log.jsonl`, with the scores of its points; those below are of what
is published. It can be repeated, not to the byte.

## What it scored

Windows of test values over up to 8 memories with hard distractors (everyday: up to 3 memories);
share of windows with EVERY token of every answering reply right, teacher-forced:

| wordings | memory on | memory off |
|---|---|---|
| as trained | {train_wordings_on:.0%} | {train_wordings_off:.0%} |
| new openers and frames | {held_out_on:.0%} | {held_out_off:.0%} |
| everyday sentences kept out of training | {everyday_on:.0%} | {everyday_off:.0%} |

## Template

`<|bos|>`, then `<|system|>`, `<|user|>`, `<|assistant|>`, `<|tool|>` turns, each with `<|end|>`;
the system turn is optional and holds tools as JSON; tool calls are JSON. A space stands before
what the user says. Context: 2,048 tokens.
"""


def write_card(
    folder: Path, parameters: int, layout: MemoryLayout, scores: Mapping[str, float]
) -> None:
    """Write `README.md` into a trained folder."""
    text = _CARD.format(
        parameters=parameters / 1e6,
        stored=layout.memory_layers[-1],
        readers=", ".join(map(str, layout.retrieval_layers)),
        python=platform.python_version(),
        torch=torch.__version__,
        **scores,
    )
    (folder / "README.md").write_text(text)
