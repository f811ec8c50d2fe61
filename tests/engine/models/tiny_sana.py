"""A tiny SANA pipeline of the true classes."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

from tests.engine.models.tiny_parts import gemma, tokenizer


def sana(scheduler: Any = None, **transformer: Any) -> SanaPipeline:
    """8 pixels a latent instead of 32; unless told otherwise, the scheduler is the published one, of second order."""
    sizes = {"in_channels": 4, "out_channels": 4, "sample_size": 32} | transformer
    model = SanaTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=32,
        **sizes,
    ).eval()  # fmt: skip
    vae = AutoencoderDC(
        latent_channels=4, attention_head_dim=4, encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",),
        decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",), encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4, encoder_layers_per_block=(1,) * 4, decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((), (), (), (5,)), decoder_qkv_multiscales=((), (), (), (5,)), scaling_factor=0.41407,
    ).eval()  # fmt: skip
    published = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return SanaPipeline(
        transformer=model, scheduler=scheduler or published, vae=vae, text_encoder=gemma(32),
        tokenizer=tokenizer("<start> $A"),
    )  # fmt: skip
