"""Floating-point operations of a transformer, from the shapes of its weights: matrix products alone (free of torch).

A layer of `out × in` weights takes 2·out·in operations a token that passes through it, and attention 4·queries·keys·
width. Which tokens pass through a layer is told by its name, over all families; tests hold the sums equal to torch's
own count. Products of weights and tokens are what takes the time: norms, activations and the like are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.model_size import ModelSize, is_adapted
from engine.settings import RunSettings

Stream = Literal["image", "text", "glyphs", "all text", "all", "once", "modulations"]
# What passes through a layer, by the first pattern that its name fits; where none does, the image's tokens.
_STREAMS: tuple[tuple[re.Pattern[str], Stream], ...] = (
    (re.compile(r"^distilled_guidance_layer"), "modulations"),
    (re.compile(r"time_guidance_embed|(?:^|\.)(?:timestep|text|guidance|t)_embedder|^time_embed\."), "once"),
    (re.compile(r"modulation|_mod\.|norm\w*\.linear\.|norm_out\.linear_1\."), "once"),
    (re.compile(r"^context_embedder_2"), "glyphs"),
    (re.compile(r"^context_embedder|cap_embedder|caption_|^txt_in|^context_refiner"), "text"),
    (re.compile(r"\.add_[qkv]_proj|\.to_add_out|\.ff_context|\.txt_mlp"), "all text"),
    (re.compile(r"^single_transformer_blocks|^layers\.|^all_final_layer|^norm_out\.linear_2"), "all"),
)
_BLOCK = re.compile(r"(?:blocks|refiner|^layers)\.(\d+)\.")
_OUTPUT = re.compile(r"^proj_out|^norm_out\.linear_2|^all_final_layer\..*\.linear\.")
# Layers whose input is the run's, and so takes no gradient whatever is trained; and those where it does if their norms
# are trained, which come before them.
_FIRST = re.compile(
    r"^(?:x_embedder|img_in|context_embedder)\.(?:proj\.)?weight|^(?:pos|patch)_embed\.proj|^all_x_embedder"
    r"|caption_projection\.linear_1|\.proj_in\.|\.in_proj\.|_embedder\.linear_1\.|^t_embedder\.mlp\.0"
)
_FIRST_AFTER_NORM = re.compile(r"cap(?:tion)?_embedder\.1\.|^txt_in|^context_embedder_2\.linear_1")
# Where the first LoRA of the blocks sits: what comes before it takes no gradient.
_FIRST_ADAPTED = re.compile(
    r"(?:^transformer_blocks|noise_refiner|context_refiner|refiner_blocks)\.0\."
    r"(?:attn|attn1|attn2|attention)\.(?:to|add)_[qkv](?:_proj)?\."
)
_ENDS_TEXT = re.compile(r"\.to_add_out|\.ff_context|\.txt_mlp")
_PADDED_TO = 32  # tokens, by Z-Image, image and text alike


@dataclass(frozen=True)
class Tokens:
    """What one image is to a transformer: tokens of the image, of its prompt, and (HunyuanImage) of words in it."""

    image: int
    text: int
    glyphs: int = 0


@dataclass(frozen=True)
class Flops:
    """Operations of one image.

    Attributes:
        forward: of a forward.
        training: of a forward and the backward of what the settings train.
        blocks: of the forward of the blocks, which gradient checkpointing repeats.
    """

    forward: int
    training: int
    blocks: int

    def trained(self, settings: RunSettings) -> int:
        """Of a forward and backward as the settings have it, a repeated forward included."""
        return self.training + (self.blocks if settings.tuning.gradient_checkpointing else 0)


@dataclass(frozen=True)
class _Layer:
    """A layer: its weights (of all inputs and outputs: `width`), the tokens that pass through it, and its part."""

    name: str
    weights: int
    width: int
    rows: int
    adapted: bool

    @property
    def in_block(self) -> bool:
        return bool(_BLOCK.search(self.name))


def count_flops(size: ModelSize, settings: RunSettings, tokens: Tokens | None = None) -> Flops:
    """Operations of the run's transformer, its LoRA included, for one image; `tokens` where they are not the usual."""
    tokens = tokens or Tokens(size.image_tokens(settings), size.text_tokens)
    network = _Network(size, settings, tokens)
    layers, rank = network.layers, settings.tuning.rank
    products = sum(layer.weights * layer.rows for layer in layers)
    blocks = sum(layer.weights * layer.rows for layer in layers if layer.in_block)
    adapters = rank * sum(layer.width * layer.rows for layer in layers if layer.adapted)
    attention = network.attention()
    forward = 2 * (products + adapters) + attention
    return Flops(forward, forward + network.backward() + 2 * attention, 2 * (blocks + adapters) + attention)


class _Network:
    """A transformer by its layers, and what is trained of it."""

    def __init__(self, size: ModelSize, settings: RunSettings, tokens: Tokens) -> None:
        self.size, self.tuning, self.names = size, settings.tuning, size.transformer.keys()
        self.linear = any(".attn1." in name for name in self.names)  # SANA: attention in linear time, then to the text
        self.rows = self._rows(tokens)
        self.layers = [
            _Layer(name, shape.num_elements, sum(shape.shape), self.rows[self._stream(name)],
                   is_adapted(name, shape, settings))
            for name, shape in size.transformer.items() if name.endswith(".weight") and len(shape.shape) > 1
        ]  # fmt: skip

    def _rows(self, tokens: Tokens) -> dict[Stream, int]:
        image, text, glyphs = tokens.image, tokens.text, tokens.glyphs
        if "cap_pad_token" in self.names:
            image, text = (-(-count // _PADDED_TO) * _PADDED_TO for count in (image, text))
        double, single = self._depth("transformer_blocks"), self._depth("single_transformer_blocks")
        return {
            "image": image, "text": text, "glyphs": glyphs, "all text": text + glyphs, "all": image + text + glyphs,
            # Chroma: shift, scale and gate, twice for both streams of a double block, once for a single one.
            "once": 1, "modulations": 12 * double + 3 * single + 2,
        }  # fmt: skip

    def _depth(self, stack: str) -> int:
        """How many blocks a stack has."""
        starts = [name.removeprefix(f"{stack}.") for name in self.names if name.startswith(f"{stack}.")]
        return 1 + max((int(rest.partition(".")[0]) for rest in starts), default=-1)

    def _stream(self, name: str) -> Stream:
        if self.linear and re.search(r"\.attn2\.to_[kv]\.", name):
            return "text"
        return next((stream for pattern, stream in _STREAMS if pattern.search(name)), "image")

    def attention(self) -> int:
        """Queries with keys, and weights with values, in every block; of a backward twice as much."""
        return sum(4 * width * pairs for width, pairs in self._attentions())

    def _attentions(self) -> Iterator[tuple[int, int]]:
        """Of each attention the width, and how many queries meet how many keys."""
        for name, shape in self.size.transformer.items():
            module = re.match(r"(.*)\.to_(?:q|qkv_mlp_proj)\.weight$", name)
            if not module:
                continue
            rows, width = self.rows[self._stream(name)], shape.shape[0 if name.endswith("to_q.weight") else 1]
            if self.linear:
                # Keys with values first: a square of each head, and one more row that counts.
                keys = self.size.head_width + 1 if ".attn1." in name else self.rows["text"]
                yield width, rows * keys
            else:
                joint = f"{module[1]}.add_q_proj.weight" in self.names
                yield width, (self.rows["all"] if joint else rows) ** 2

    def backward(self) -> int:
        """Operations of the backward through layers: for their inputs, and for what is trained of them."""
        rank, full = self.tuning.rank, self.tuning.method == "full"
        total = 0
        for layer in self.layers:
            if self._leads_nowhere(layer.name):
                continue
            reached = self._reached(layer)
            total += 2 * layer.weights * layer.rows * (reached + full)
            if layer.adapted:
                inner = rank * layer.width * layer.rows
                # The LoRA's own weights, the input of its second, and of its first where the layer's takes a gradient.
                outputs = rank * self.size.transformer[layer.name].shape[0] * layer.rows
                total += 2 * inner + 2 * (inner if reached else outputs)
        return total

    def _reached(self, layer: _Layer) -> bool:
        """Whether a gradient is wanted for the layer's input."""
        if self.tuning.method == "full":
            return not _FIRST.search(layer.name)
        if self.tuning.layers == "all":
            return not (_FIRST.search(layer.name) or _FIRST_AFTER_NORM.search(layer.name))
        if self._stream(layer.name) in ("once", "modulations") or not (layer.in_block or _OUTPUT.search(layer.name)):
            return False
        if self.linear:
            return not re.search(r"\.0\.attn1\.to_[qkv]\.|\.attn2\.to_[kv]\.", layer.name)
        if "add_" in layer.name and any("refiner_blocks.0.attn" in name for name in self.names):
            return True  # the text has passed adapted blocks before
        return not _FIRST_ADAPTED.search(layer.name)

    def _leads_nowhere(self, name: str) -> bool:
        """Whether nothing reads what the layer makes: the text of the last block, where no block of both follows."""
        last = f"transformer_blocks.{self._depth('transformer_blocks') - 1}."
        ends = name.startswith(last) and bool(_ENDS_TEXT.search(name))
        return ends and not self._depth("single_transformer_blocks")
