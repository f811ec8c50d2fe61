"""A tiny HunyuanImage pipeline of the true classes."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLHunyuanImage,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance
from transformers import ByT5Tokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, T5Config, T5EncoderModel

from tests.engine.models.tiny_tokenizers import qwen


def hunyuan_image(distilled: bool = False, **transformer: Any) -> HunyuanImagePipeline:
    """8 pixels a latent instead of 32; distilled, it takes guidance as an input and has no guider."""
    glyphs = T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    guiders = {} if distilled else {
        "guider": AdaptiveProjectedMixGuidance(guidance_scale=4.0),
        "ocr_guider": AdaptiveProjectedMixGuidance(guidance_scale=4.0, adaptive_projected_guidance_start_step=38),
    }  # fmt: skip
    return HunyuanImagePipeline(
        transformer=HunyuanImageTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
            num_single_layers=2, num_refiner_layers=1, patch_size=(1, 1), text_embed_dim=32, text_embed_2_dim=16,
            rope_axes_dim=(8, 8), guidance_embeds=distilled, **transformer,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=AutoencoderKLHunyuanImage(
            in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32, 32, 32), layers_per_block=1,
            spatial_compression_ratio=8, sample_size=64, scaling_factor=0.75289,
        ).eval(),
        text_encoder=_qwen_vl(), tokenizer=qwen(), text_encoder_2=T5EncoderModel(glyphs).eval(),
        tokenizer_2=ByT5Tokenizer(), **guiders,
    )  # fmt: skip


def _qwen_vl() -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "vocab_size": 640, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()
