"""A tiny Lumina-Image 2.0 pipeline of the true classes."""

from __future__ import annotations

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

from tests.engine.models.tiny_parts import autoencoder, gemma, tokenizer


def lumina2(**scheduler: Any) -> Lumina2Pipeline:
    """With the published scheduler's shift, unless told otherwise."""
    transformer = Lumina2Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, hidden_size=32, num_layers=2, num_refiner_layers=1,
        num_attention_heads=2, num_kv_heads=1, multiple_of=16, axes_dim_rope=(8, 4, 4), axes_lens=(300, 16, 16),
        cap_feat_dim=32,
    ).eval()  # fmt: skip
    return Lumina2Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 6.0} | scheduler)),
        vae=autoencoder(num_halvings=3), text_encoder=gemma(32), tokenizer=tokenizer("<start> $A"),
    )  # fmt: skip
