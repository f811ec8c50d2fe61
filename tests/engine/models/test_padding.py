"""The short form of zero padding against the long one."""

from __future__ import annotations

import pytest
import torch
from diffusers import SD3Transformer2DModel

from engine.models.padding import count_padding, shorten_padding


def tiny_transformer(qk_norm: str | None) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=16, out_channels=4, qk_norm=qk_norm,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("qk_norm", [None, "rms_norm"])
def test_one_counted_token_equals_256_zero_tokens(qk_norm: str | None) -> None:
    transformer = tiny_transformer(qk_norm)
    text = torch.cat([torch.randn(2, 5, 24), torch.zeros(2, 256, 24)], dim=1)
    latents, pooled, time = torch.randn(2, 4, 8, 8), torch.randn(2, 16), torch.tensor([700.0, 200.0])
    with torch.no_grad():
        long = transformer(latents, text, pooled, time, return_dict=False)[0]
        short_text, count = shorten_padding(text)
        uncounted = transformer(latents, short_text, pooled, time, return_dict=False)[0]
        count_padding(transformer, count)
        short = transformer(latents, short_text, pooled, time, return_dict=False)[0]
    assert (short_text.shape[1], count) == (6, 256)
    assert (short - long).abs().max() < 1e-5
    assert (uncounted - long).abs().max() > 1e-3


def test_embeddings_without_padding_are_left_alone() -> None:
    text = torch.randn(2, 5, 24)
    text[0, -2:] = 0.0
    assert shorten_padding(text)[1] == 1
    assert torch.equal(shorten_padding(text)[0], text)
