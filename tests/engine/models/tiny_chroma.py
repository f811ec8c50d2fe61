"""A tiny Chroma pipeline of the true classes."""

from __future__ import annotations

from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

from tests.engine.models.tiny_parts import autoencoder, t5, tokenizer


def chroma(**scheduler: object) -> ChromaPipeline:
    """Its autoencoder has 2 pixels a latent instead of 8."""
    transformer = ChromaTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6), approximator_num_channels=16, approximator_hidden_dim=16,
        approximator_layers=2,
    ).eval()  # fmt: skip
    return ChromaPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(**scheduler), vae=autoencoder(),
        text_encoder=t5(32), tokenizer=tokenizer("$A <end>"),
    )  # fmt: skip
