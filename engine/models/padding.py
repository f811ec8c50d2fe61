"""One token for many: the exact short form of Stable Diffusion 3's zero padding.

Without a T5 encoder, diffusers' SD3 pipeline fills T5's place with `max_sequence_length` (256) zero tokens. SD3 gives
text tokens no position, so those tokens are equal and stay equal through every block. A key that occurs n times weighs
in softmax as one key with log n added to its logit; one token with that bias therefore gives the same image tokens, at
a quarter of the arithmetic for a small model.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional


class CountedPaddingProcessor(JointAttnProcessor2_0):
    """Joint attention of SD3 whose last text token stands for `count` equal ones.

    Args:
        count: how many equal tokens the last token of `encoder_hidden_states` (B, L, D) stands for, at least 1.

    A call may give each row a number of its own, by its logarithm: `log_count` (B, 1, 1), as training on many numbers
    does.
    """

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.log_count = math.log(count)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        log_count: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Attend; shapes as in diffusers' JointAttnProcessor2_0."""
        if encoder_hidden_states is None:
            return super().__call__(attn, hidden_states, **kwargs)
        num_image_tokens = hidden_states.shape[1]
        query, key, value = (
            torch.cat(
                [_heads(image(hidden_states), attn, norm), _heads(text(encoder_hidden_states), attn, text_norm)], dim=2
            )
            for image, text, norm, text_norm in (
                (attn.to_q, attn.add_q_proj, attn.norm_q, attn.norm_added_q),
                (attn.to_k, attn.add_k_proj, attn.norm_k, attn.norm_added_k),
                (attn.to_v, attn.add_v_proj, None, None),
            )
        )
        bias = torch.zeros(query.shape[0], 1, 1, key.shape[2], dtype=query.dtype, device=query.device)
        bias[..., -1] = self.log_count if log_count is None else log_count
        mixed = _attend(query, key, value, bias)
        mixed = mixed.transpose(1, 2).flatten(2).to(query.dtype)
        image_out, text_out = mixed[:, :num_image_tokens], mixed[:, num_image_tokens:]
        if not attn.context_pre_only:
            text_out = attn.to_add_out(text_out)
        return attn.to_out[1](attn.to_out[0](image_out)), text_out


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention (B, H, L, D) with a bias (B, 1, 1, L) on the keys' logits."""
    if query.device.type == "cpu":
        # On a CPU the fused kernel's backward in bfloat16 takes longer than the rest of a small model together.
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + bias
        return logits.softmax(-1).to(value.dtype) @ value
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.expand(-1, -1, query.shape[2], -1))


def _heads(projected: Tensor, attn: Attention, norm: nn.Module | None) -> Tensor:
    """(B, L, H·D) to (B, H, L, D), normalised where the model does."""
    split = projected.unflatten(2, (attn.heads, -1)).transpose(1, 2)
    return split if norm is None else norm(split)


def count_padding(transformer: SD3Transformer2DModel, count: int) -> None:
    """Let the last text token given to an SD3Transformer2DModel stand for `count` equal ones, from now on."""
    transformer.set_attn_processor(CountedPaddingProcessor(count))


def shorten_padding(prompt_embeds: Tensor) -> tuple[Tensor, int]:
    """Cut the run of zero tokens at the end of (B, L, D) embeddings to one; returns (B, L−n+1, D) and n ≥ 1.

    n is 1, and nothing is cut, where the embeddings do not end in zeros in every row.
    """
    is_zero = (prompt_embeds == 0).all(dim=2).all(dim=0)
    num_trailing = int(is_zero.flip(0).long().cumprod(0).sum())
    if num_trailing <= 1:
        return prompt_embeds, 1
    return prompt_embeds[:, : prompt_embeds.shape[1] - num_trailing + 1], num_trailing
