"""Tokenizers of the true classes, learned in a moment from the texts the tests use."""

from __future__ import annotations

import json

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

# The system prompt is Qwen-Image's, so that its 34 tokens are dropped as from the true tokenizer's.
TEXTS = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n",
    " a red circle, a blue star left of a green square and a large white square above the small star",
)
QWEN_TURNS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)

# Mistral's, as FLUX.2 fills it: contents are lists of parts.
MISTRAL_TURNS = (
    "{% for message in messages %}{% set text = message.content[0].text %}"
    "{% if message.role == 'system' %}<start> [SYSTEM] {{ text }} [/SYSTEM] {% else %}[INST] {{ text }} [/INST]"
    "{% endif %}{% endfor %}"
)


def words() -> PreTrainedTokenizerFast:
    """A token a word, at most 32, between a start and an end, as CLIP's."""
    found = sorted({word for text in TEXTS for word in text.replace(",", "").split()})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<start>", "<end>", *found])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>",
        model_max_length=32,
    )  # fmt: skip


def qwen() -> Qwen2Tokenizer:
    """Byte pairs by Qwen's rules, with a chat template that thinks unless it is told not to."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    learned = json.loads(tokenizer.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learned["vocab"], merges=[tuple(merge) for merge in learned["merges"]],
        extra_special_tokens=["<|im_start|>", "<|im_end|>"], chat_template=QWEN_TURNS,
    )  # fmt: skip


def mistral() -> PreTrainedTokenizerFast:
    """A token a word, with Mistral's turns."""
    tokenizer = words()
    tokenizer.chat_template = MISTRAL_TURNS
    tokenizer.model_max_length = 2048
    tokenizer.add_special_tokens({"additional_special_tokens": ["[SYSTEM]", "[/SYSTEM]", "[INST]", "[/INST]"]})
    return tokenizer
