"""Tiny pipelines of published families, with random but fixed weights, one function each."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from tests.engine.models import tiny_tokenizers


def autoencoder(channels: int = 4) -> AutoencoderKL:
    """2 pixels a latent."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=channels, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1, scaling_factor=1.3, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip


def _clip(width: int, layers: int) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=24, projection_dim=width, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config).eval()


def stable_diffusion_3(with_t5: bool = True, **transformer: Any) -> StableDiffusion3Pipeline:
    """All three encoders speak, as in the published folders, or T5 is left out, as many save memory."""
    t5 = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=24,
            pos_embed_max_size=16, **transformer,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=autoencoder(),
        text_encoder=_clip(16, 2), tokenizer=tiny_tokenizers.words(),
        text_encoder_2=_clip(8, 3), tokenizer_2=tiny_tokenizers.words(),
        text_encoder_3=T5EncoderModel(t5).eval() if with_t5 else None,
        tokenizer_3=tiny_tokenizers.words() if with_t5 else None,
    )  # fmt: skip


def stable_diffusion_3_5_medium(with_t5: bool = True) -> StableDiffusion3Pipeline:
    """Normalised queries and keys, and a second attention in the first blocks."""
    return stable_diffusion_3(with_t5, qk_norm="rms_norm", dual_attention_layers=(0, 1))


def stable_diffusion_3_5_large() -> StableDiffusion3Pipeline:
    """Normalised queries and keys."""
    return stable_diffusion_3(qk_norm="rms_norm")
