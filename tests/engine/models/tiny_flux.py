"""A tiny FLUX.1 pipeline of the true classes."""

from __future__ import annotations

from typing import Literal

from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from tests.engine.models import tiny_tokenizers
from tests.engine.models.tiny_pipelines import autoencoder

FluxName = Literal["dev", "schnell"]
# Those of the published pipelines: dev's shift depends on the resolution, schnell has none.
FLUX_SCHEDULERS: dict[FluxName, FlowMatchEulerDiscreteScheduler] = {
    "dev": FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_image_seq_len=256, max_image_seq_len=4096, base_shift=0.5,
        max_shift=1.15,
    ),
    "schnell": FlowMatchEulerDiscreteScheduler(shift=1.0),
}  # fmt: skip


def flux(name: FluxName) -> FluxPipeline:
    """Its autoencoder has 2 pixels a latent instead of 8."""
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=name == "dev", axes_dims_rope=(4, 6, 6),
    ).eval()  # fmt: skip
    clip = CLIPTextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, projection_dim=16, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    t5 = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return FluxPipeline(
        transformer=transformer, scheduler=FLUX_SCHEDULERS[name], vae=autoencoder(),
        text_encoder=CLIPTextModel(clip).eval(), tokenizer=tiny_tokenizers.words(),
        text_encoder_2=T5EncoderModel(t5).eval(), tokenizer_2=tiny_tokenizers.words(),
    )  # fmt: skip
