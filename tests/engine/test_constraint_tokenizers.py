"""Constrained replies under the tokenizers of every supported family, made here from a few words.

Llama 3, Qwen and newer Mistral models cut bytes (byte-level BPE); Llama 2 and older Mistral models
cut characters with a sign for blanks, and fall back to bytes, as sentencepiece does.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from schema_dice import fits, random_ids, random_schema
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from memlong_agent.engine.constraint import Vocabulary
from memlong_agent.memlong.chat_text import ReplyText

SPECIAL = ["<unk>", "<s>", "</s>"]
STOP = 2
WORDS = [
    'He said: "my dog is called Rex", {"name": "Rex", "age": 3, "tags": ["a", "b"]} and so on.',
    "true false null 123456789 0.5 -17 1e10 [[1, 2], [3, 4]] {} größe naïve ☀ 日本",
] * 40
# As in Qwen2 and Llama 3: words with one sign before them, up to three digits.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
BLANK = "\u2581"


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(WORDS, trainer)
    return made


def sentencepiece(*, metaspace: bool) -> Tokenizer:
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    found = json.loads(learned.to_str())["model"]
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *found["vocab"]]
    made = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[tuple(merge) for merge in found["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace(BLANK, prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)]
        )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace(BLANK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(SPECIAL)
    return made


STYLES: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "sentencepiece": lambda: sentencepiece(metaspace=False),
    "metaspace": lambda: sentencepiece(metaspace=True),
}


@pytest.mark.parametrize("padding", [0, 61])  # models round the size of their vocabulary up
@pytest.mark.parametrize("style", STYLES)
def test_replies_fit_and_are_read_as_they_were_said(style: str, padding: int) -> None:
    tokenizer = SimpleNamespace(backend_tokenizer=STYLES[style]())
    size = tokenizer.backend_tokenizer.get_vocab_size() + padding
    vocabulary = Vocabulary(tokenizer, size, frozenset({STOP}))
    for seed in range(12):
        dice = random.Random(seed)
        calls = {f"tool {n}": random_schema(dice, 2, "object") for n in range(2)}
        constraint = vocabulary.constraint(calls, None)
        ids = random_ids(constraint, size, STOP, 400, seed, temperature=(0.0, 2.0)[seed % 2])
        text = ReplyText(tokenizer, ())
        said = "".join([*map(text.push, ids), text.finish()])
        call = json.loads(said)
        assert constraint.complete and fits(call["arguments"], calls[call["name"]])


@pytest.mark.parametrize("style", STYLES)
def test_every_printable_character_has_a_token_of_its_own(style: str) -> None:
    tokenizer = SimpleNamespace(backend_tokenizer=STYLES[style]())
    size = tokenizer.backend_tokenizer.get_vocab_size()
    vocabulary = Vocabulary(tokenizer, size, frozenset({STOP}))
    vocabulary.constraint({}, {"type": "null"})
    name = tokenizer.backend_tokenizer.id_to_token
    assert len(set(vocabulary.single.values())) == 95
    for char, token in vocabulary.single.items():
        blanks = ["\u0120", BLANK] if char == " " else []
        assert name(token) in [char, f"<0x{ord(char):02X}>", *blanks]
