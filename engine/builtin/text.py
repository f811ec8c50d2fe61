"""The text side: a word tokenizer and two small CLIP encoders, taught to read a caption before any image is drawn.

The first encoder has four layers and resolves the sentence; the second has one, and since diffusers takes the hidden
states before the last layer, its tokens are the bare words. Throw-away linear heads ask the pooled vector (and the
state at the end of the sentence) what lies left or on top, what lies right or below, along which axis, how many and on
what ground. The flow model then finds the parse ready in the vector that modulates every block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase, Replace
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from engine.builtin.progress import Progress, load_state, save_state
from engine.builtin.prompts import scenes
from engine.builtin.scenes import BACKGROUNDS, COLOURS, OPPOSITE, SHAPES, VOCABULARY, SceneSpec, caption, parse_caption

NUM_TOKENS = 16
WIDTHS = (128, 32)  # the two encoders' widths; together the width of the transformer
_NUM_LAYERS = (4, 1)
_PAD, _END, _UNKNOWN = "<pad>", "<end>", "<unk>"
_SIZES = (None, "small", "large")

# What the heads must read, and how many answers each question has; 0 stands for "not there" or "not said".
_QUESTIONS: dict[str, int] = {
    "axis": 3,
    "count": 3,
    "background": 1 + len(BACKGROUNDS),
    "first_shape": 1 + len(SHAPES),
    "first_colour": 1 + len(COLOURS),
    "first_size": 3,
    "second_shape": 1 + len(SHAPES),
    "second_colour": 1 + len(COLOURS),
    "second_size": 3,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, lower case, `<end>` after the last word; words it does not know become `<unk>`."""
    vocabulary = {word: number for number, word in enumerate((_PAD, _END, "<start>", _UNKNOWN, *VOCABULARY))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single=f"$A {_END}", special_tokens=[(_END, vocabulary[_END])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=NUM_TOKENS,
        pad_token=_PAD,
        eos_token=_END,
        unk_token=_UNKNOWN,
    )


def build_text_encoders() -> tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection]:
    """Fresh encoders of widths 128 and 32."""
    first, second = (_build_encoder(width, layers) for width, layers in zip(WIDTHS, _NUM_LAYERS, strict=True))
    return first, second


def build_silent_encoder() -> tuple[PreTrainedTokenizerFast, T5EncoderModel]:
    """The third encoder that a plain `from_pretrained` wants: no layers, no words, and zeros for every token.

    diffusers puts the same zeros where the third encoder is None, but opens such a folder only when told so by the
    caller. The tokenizer drops every character, so that no sentence is ever too long for it.
    """
    tokenizer = Tokenizer(WordLevel({_PAD: 0, _UNKNOWN: 1}, unk_token=_UNKNOWN))
    tokenizer.normalizer = Replace(Regex("."), "")
    tokenizer.pre_tokenizer = Whitespace()
    width = sum(WIDTHS)
    model = T5EncoderModel(T5Config(vocab_size=2, d_model=width, d_kv=1, d_ff=1, num_layers=0, num_heads=1))
    nn.init.zeros_(model.encoder.final_layer_norm.weight)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=NUM_TOKENS, pad_token=_PAD, unk_token=_UNKNOWN
    )
    return wrapped, model.eval()


def tokenize(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> torch.Tensor:
    """Token numbers (N, 16), exactly as the diffusers pipeline makes them."""
    batch = tokenizer(prompts, padding="max_length", max_length=NUM_TOKENS, truncation=True, return_tensors="pt")
    ids: torch.Tensor = batch.input_ids
    return ids


def encode(encoders: tuple[nn.Module, nn.Module], ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Token states (N, 16, 160) and pooled vector (N, 160), as the diffusers pipeline takes them.

    The states before the last layer of each encoder stand side by side, and so do their projected vectors.
    """
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return states, torch.cat([output.text_embeds for output in outputs], dim=-1)


def train_text(out: Path, num_steps: int, batch_size: int, learning_rate: float, seed: int) -> None:
    """Teach the encoders to read; their state is kept in `out/text.pt`."""
    torch.manual_seed(seed)
    tokenizer, encoders, heads = build_tokenizer(), build_text_encoders(), _Heads()
    modules = nn.ModuleList([*encoders, heads])
    optimizer = torch.optim.AdamW(
        modules.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=1e-3, fused=True
    )
    stream, rng = scenes(np.random.default_rng([seed, 2])), np.random.default_rng([seed, 3])
    progress = Progress("text", num_steps)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            rate = min((step + 1) / 100, 0.5 * (1.0 + math.cos(math.pi * step / num_steps)))
            group["lr"] = learning_rate * rate
        prompts = [caption(next(stream), rng) for _ in range(batch_size)]
        ids = tokenize(tokenizer, prompts)
        states, pooled = encode(encoders, ids)
        loss, right = heads(states, pooled, ids, prompts)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        progress.report(step, loss=loss.item(), right=right)
    state = {"first": encoders[0].state_dict(), "second": encoders[1].state_dict()}
    save_state(out / "text.pt", state)


def load_text_encoders(out: Path) -> tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection]:
    """The encoders as last saved in `out`."""
    state = load_state(out / "text.pt")
    if state is None:
        raise ValueError(f"There are no text encoders in {out}: run the step 'text' first.")
    first, second = build_text_encoders()
    first.load_state_dict(state["first"])
    second.load_state_dict(state["second"])
    return first.eval(), second.eval()


class _Heads(nn.Module):
    """Throw-away linear readers of the pooled vector, of the state at the end, and of the state at each shape word."""

    def __init__(self) -> None:
        super().__init__()
        width = sum(WIDTHS)
        self.pooled = nn.Linear(width, sum(_QUESTIONS.values()))
        self.end = nn.Linear(width, sum(_QUESTIONS.values()))

    def forward(
        self, states: torch.Tensor, pooled: torch.Tensor, ids: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, float]:
        """Mean cross entropy over all questions, and the share of captions that the pooled vector answers in full."""
        answers = torch.tensor([_answers(prompt) for prompt in prompts])
        # Id 1 is the end of the sentence; it stands once in every row.
        ends = states[torch.arange(len(ids)), (ids == 1).int().argmax(-1)]
        loss = torch.zeros(())
        right = torch.ones(len(prompts), dtype=torch.bool)
        for head, vector, weight in ((self.pooled, pooled, 1.0), (self.end, ends, 0.5)):
            parts = head(vector).split(list(_QUESTIONS.values()), dim=-1)
            for column, logits in enumerate(parts):
                loss = loss + weight * nn.functional.cross_entropy(logits, answers[:, column])
                if head is self.pooled:
                    right &= logits.argmax(-1) == answers[:, column]
        return loss / len(_QUESTIONS), float(right.float().mean())


def _answers(prompt: str) -> list[int]:
    """The answers to all questions, with the objects in the order left to right or top to bottom."""
    spec = parse_caption(prompt)
    assert spec is not None
    resolved = _in_order(spec)
    answers = [resolved.axis, spec.count - 1, _number(spec.background, tuple(BACKGROUNDS))]
    for item in resolved.objects:
        if item is None:
            answers += [0, 0, 0]
        else:
            answers += [_number(item[0], SHAPES), _number(item[1], tuple(COLOURS)), _SIZES.index(item[2])]
    return answers


@dataclass(frozen=True)
class _Resolved:
    """The axis (0 none, 1 across, 2 down) and the two places along it, each (shape, colour, size) or empty."""

    axis: int
    objects: tuple[tuple[str, str, str | None] | None, tuple[str, str, str | None] | None]


def _in_order(spec: SceneSpec) -> _Resolved:
    """Undo the turn of phrase: "a star right of a cross" has the cross first."""
    kinds = [(item.shape, item.colour, item.size) for item in spec.objects]
    if spec.relation is None:
        return _Resolved(0, (kinds[0], kinds[1] if len(kinds) > 1 else None))
    turned = spec.relation in ("right of", "below")
    relation = OPPOSITE[spec.relation] if turned else spec.relation
    first, second = (kinds[1], kinds[0]) if turned else (kinds[0], kinds[1])
    return _Resolved(1 if relation == "left of" else 2, (first, second))


def _number(name: str | None, names: tuple[str, ...]) -> int:
    """0 for nothing, otherwise the place of a name counted from 1."""
    return 0 if name is None else 1 + names.index(name)


def _build_encoder(width: int, num_layers: int) -> CLIPTextModelWithProjection:
    """One CLIP text encoder over the words of the grammar."""
    config = CLIPTextConfig(
        vocab_size=4 + len(VOCABULARY),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=num_layers,
        num_attention_heads=width // 32,
        max_position_embeddings=NUM_TOKENS,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        # CLIP's default of 0.02 starts a model this small far too quietly.
        initializer_factor=2.0,
    )
    return CLIPTextModelWithProjection(config)
