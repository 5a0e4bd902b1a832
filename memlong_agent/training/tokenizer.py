"""The tokenizer of memlong-tiny: byte-level BPE, and its chat template.

In: an iterable of texts. Out: a transformers tokenizer that can be saved beside a model. Every byte
has a token, so no text is unknown. Digits are split in pairs, so that a number is tokenized alike
wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOS, PAD, END = "<|bos|>", "<|pad|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
VOCABULARY = 4096
# Words with their space, digits in pairs, punctuation apart from letters (so that a quoted name is
# cut like a bare one), and whitespace.
_WORDS = Regex(r" ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+")
# Before what the user says: the first word of a text has no space before it and is cut into other
# pieces than the same word in a reply, so that it could not be copied piece by piece.
BEFORE_USER = " "
# Tools go into the system turn as JSON; a tool call is the assistant's JSON, one object a call.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- set system = messages[0]['content'] "
    "if messages and messages[0]['role'] == 'system' else '' -%}"
    "{%- if system or tools -%}<|system|>{{ system }}"
    "{%- if tools -%}{{ '\n' if system else '' }}{{ 'Tools: ' + (tools | tojson) }}{%- endif -%}"
    "<|end|>{%- endif -%}"
    "{%- for message in messages if message['role'] != 'system' -%}"
    "{{ '<|' + message['role'] + '|>' }}"
    f"{{%- if message['role'] == 'user' -%}}{{{{ '{BEFORE_USER}' }}}}{{%- endif -%}}"
    "{{ message['content'] or '' }}"
    "{%- for call in message.get('tool_calls') or [] -%}"
    "{%- set f = call['function'] if 'function' in call else call -%}"
    "{{ '{\"name\": ' + (f['name'] | tojson) + ', \"arguments\": ' "
    "+ (f['arguments'] | tojson) + '}' }}"
    "{%- endfor -%}<|end|>"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `vocabulary` tokens over `texts`, special tokens included."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
