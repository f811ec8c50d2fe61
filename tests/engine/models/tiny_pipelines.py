"""Tiny pipelines of published families, with random but fixed weights, one function each."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

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
        max_position_embeddings=32, projection_dim=width, pad_token_id=0, bos_token_id=2, eos_token_id=3,
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


def qwen_image() -> QwenImagePipeline:
    """The scheduler is the published one: shifted by the resolution, and stretched to end at 0.02 before 0."""
    text = {
        "vocab_size": 640, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": _sections_rope(),
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192,
            shift_terminal=0.02, time_shift_type="exponential",
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
            latents_mean=[-0.3, 0.2, 0.1, -0.1], latents_std=[1.2, 0.8, 1.5, 1.0],
        ).eval(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=vision)
        ).eval(),
        tokenizer=tiny_tokenizers.qwen(),
        transformer=QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
        ).eval(),
    )  # fmt: skip


def _sections_rope() -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1000000.0}


def z_image(shift: float = 3.0) -> ZImagePipeline:
    """Turbo's shift is 3, the base model's 6."""
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False, shift=shift), vae=autoencoder(),
        text_encoder=Qwen3Model(Qwen3Config(num_hidden_layers=3, **_QWEN3)).eval(), tokenizer=tiny_tokenizers.qwen(),
        transformer=_restless(
            ZImageTransformer2DModel(
                in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32,
                axes_dims=[4, 6, 6], axes_lens=[128, 64, 64],
            )
        ).eval(),
    )  # fmt: skip


_QWEN3: dict[str, Any] = {
    "vocab_size": 640, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024,
}  # fmt: skip


def _restless(transformer: ZImageTransformer2DModel) -> ZImageTransformer2DModel:
    """Its padding tokens are zeros when it is made; trained ones are not."""
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    return transformer


def flux2(guidance_embeds: bool = True) -> Flux2Pipeline:
    """The text encoder has as many layers as the pipeline reads of."""
    text = {
        "model_type": "mistral", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 30,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    vision = {
        "model_type": "pixtral", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "head_dim": 8, "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=1)
    return Flux2Pipeline(
        scheduler=_flux2_scheduler(), vae=_flux2_autoencoder(),
        text_encoder=Mistral3ForConditionalGeneration(config).eval(), tokenizer=tiny_tokenizers.mistral(),
        transformer=_flux2_transformer(3 * 16, guidance_embeds),
    )  # fmt: skip


def flux2_klein(is_distilled: bool = False) -> Flux2KleinPipeline:
    """The text encoder has as many layers as the pipeline reads of."""
    return Flux2KleinPipeline(
        scheduler=_flux2_scheduler(), vae=_flux2_autoencoder(),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=27, **_QWEN3)).eval(),
        tokenizer=tiny_tokenizers.qwen(), transformer=_flux2_transformer(3 * 32, False), is_distilled=is_distilled,
    )  # fmt: skip


def _flux2_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, time_shift_type="exponential")


def _flux2_autoencoder() -> AutoencoderKLFlux2:
    """2 pixels a latent, with statistics that are not a new one's 0 and 1."""
    vae = AutoencoderKLFlux2(
        latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def _flux2_transformer(text_width: int, guidance_embeds: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=text_width, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    ).eval()  # fmt: skip
