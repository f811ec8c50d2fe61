"""Floating-point operations of FLUX.1's transformer, from its configuration: matrix products alone, for one image.

Model operations, for model FLOPs utilisation: what the arithmetic needs. The adapter's own products (about 2 % at rank
32), and forwards repeated by gradient checkpointing, are work done but not counted, so utilisation is a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TIME_CHANNELS = 256  # of diffusers' sinusoidal embedding of σ and guidance
EXPANSION = 4  # width of the feed-forward, in widths of the model


@dataclass(frozen=True)
class FluxFlops:
    """Operations of one image of `num_image` tokens that follows a prompt of `num_text` tokens.

    Attributes:
        config: FluxTransformer2DModel's configuration.
    """

    config: dict[str, Any]
    num_image: int
    num_text: int

    @property
    def forward(self) -> int:
        """A forward, an adapter left aside."""
        return self._conditioning + self._embedders + self._blocks + self._attention + self._output

    @property
    def training(self) -> int:
        """Forward and backward where only LoRAs of the blocks are trained.

        A frozen layer's backward is one product for its input; attention's is four for its two. No gradient reaches
        the embedders, the modulation, or the inputs of the first block's queries, keys and values.
        """
        first_projections = 2 * 3 * self._tokens * self._width**2
        return self.forward + self._blocks - first_projections + 2 * self._attention + self._output

    @property
    def _width(self) -> int:
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

    @property
    def _tokens(self) -> int:
        return self.num_image + self.num_text

    @property
    def _num_blocks(self) -> int:
        return self.config["num_layers"] + self.config["num_single_layers"]

    @property
    def _conditioning(self) -> int:
        """σ, guidance and pooled text, two layers each; the modulation of every block and of the output."""
        width, scalars = self._width, 1 + self.config["guidance_embeds"]
        embeddings = scalars * (TIME_CHANNELS + width) + self.config["pooled_projection_dim"] + width
        # Shift, scale and gate: twice for both streams of a double block, once for a single one.
        parts = 12 * self.config["num_layers"] + 3 * self.config["num_single_layers"] + 2
        return 2 * width * (embeddings + parts * width)

    @property
    def _embedders(self) -> int:
        image, text = self.config["in_channels"], self.config["joint_attention_dim"]
        return 2 * self._width * (self.num_image * image + self.num_text * text)

    @property
    def _blocks(self) -> int:
        """Linear layers of the blocks: queries, keys, values, output (4) and feed-forward, for every token."""
        return 2 * self._num_blocks * self._tokens * (4 + 2 * EXPANSION) * self._width**2

    @property
    def _attention(self) -> int:
        """Queries with keys, and weights with values."""
        return 2 * 2 * self._num_blocks * self._tokens**2 * self._width

    @property
    def _output(self) -> int:
        return 2 * self.num_image * self._width * self.config["in_channels"]
