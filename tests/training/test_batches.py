"""Training windows: the very ids that a conversation has at inference, and what counts in them."""

from __future__ import annotations

import random

import pytest
from transformers import PreTrainedTokenizerFast

from memlong_agent.memlong.loading import BUNDLED
from memlong_agent.training.batches import ANSWER_WEIGHT, REPLY_WEIGHT, Encoder
from memlong_agent.training.dialogues import Sample, Turn, make_sample
from memlong_agent.training.tokenizer import CHAT_TEMPLATE


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    found: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(str(BUNDLED))
    return found


def test_the_bundled_model_has_the_template_that_training_makes(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_a_training_window_is_what_the_chat_template_renders(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder, rng = Encoder(tokenizer), random.Random(0)
    for _ in range(100):
        sample = make_sample(rng, split="train", wordings="train", prose=[])
        messages = [
            {"role": role, "content": text}
            for turn in sample.turns
            for role, text in (("user", turn.user), ("assistant", turn.reply))
        ]
        ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        assert list(encoder.row(sample, rng).window) == ids


def test_the_first_word_of_a_message_is_cut_as_in_the_reply(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Or else it would have to be spelled, not copied: "Siid" was confirmed as "Svid"."""
    encoder = Encoder(tokenizer)
    telling = Turn("Siid is the name of my cat.", "Noted: Siid is the name of your cat.", "")
    row = encoder.row(Sample((), (telling,)), random.Random(0))
    ids = " ".join(map(str, row.window))
    word = " ".join(map(str, encoder.tokenize([" Siid is"])[0]))
    assert ids.count(word) == 2


def test_weights_are_the_reply_s_and_its_value_s_and_the_user_s_as_set(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    turn = Turn("What is my dog called?", "You told me: your dog is called Rex.", "Rex")
    rows = [
        Encoder(tokenizer, user_weight=weight).row(Sample((), (turn,)), random.Random(0))
        for weight in (0.0, 0.1)
    ]
    user = {
        weights
        for weights in zip(rows[0].weights, rows[1].weights, strict=True)
        if weights[0] != weights[1]
    }
    assert user == {(0.0, 0.1)}
    weighed = [
        tokenizer.decode(token)
        for token, weight in zip(rows[0].window, rows[0].weights, strict=True)
        if weight == ANSWER_WEIGHT
    ]
    assert "".join(weighed).strip() == "Rex"
    replied = [weight for weight in rows[0].weights if weight == REPLY_WEIGHT]
    said = Encoder(tokenizer).tokenize([turn.reply])[0]
    assert len(replied) == len(said) - len(weighed) + 1  # and its end
