"""A LoRA as kohya's trainers write it: ``lora_unet_<layer>.lora_down.weight``, ``….lora_up.weight`` and ``….alpha``.

Layers have the published names with underscores for points. sd-scripts, musubi-tuner, Forge and ComfyUI read
them, but for `TRAINERS_ONLY`; the header's ``ss_…`` texts are what their model lists show.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from engine.artifacts.export.architecture import architecture_id
from engine.artifacts.export.lora_reader import KOHYA_KEYS, KeyStyle
from engine.artifacts.export.published_lora import PublishedLora
from engine.artifacts.export.source import ExportSource

# The network module that trains such a file: sd-scripts', or musubi-tuner's for FLUX.2, Qwen-Image and Z-Image.
NETWORKS: dict[str, str] = {
    "FluxTransformer2DModel": "networks.lora_flux",
    "Flux2Transformer2DModel": "networks.lora_flux_2",
    "ChromaTransformer2DModel": "networks.lora_flux",
    "SD3Transformer2DModel": "networks.lora_sd3",
    "Lumina2Transformer2DModel": "networks.lora_lumina",
    "QwenImageTransformer2DModel": "networks.lora_qwen_image",
    "ZImageTransformer2DModel": "networks.lora_zimage",
}

# What the same trainers call the base (ss_base_model_version), by its ModelSpec architecture.
BASES: dict[str, str] = {
    "flux-1-dev": "flux1",
    "flux-1-schnell": "flux1",
    "Flux.2-dev": "flux_2_dev",
    "Flux.2-klein-4b": "flux_2_klein_4b",
    "Flux.2-klein-9b": "flux_2_klein_9b",
    "chroma": "chroma",
    "stable-diffusion-v3-medium": "3-medium",
    "stable-diffusion-v3.5-medium": "3-5-medium",
    "stable-diffusion-v3.5-large": "3-5-large",
    "lumina-2": "lumina2",
    "qwen-image": "qwen_image",
    "z-image": "z_image",
}

# ComfyUI and Forge hold q, k and v of these as one layer, and know the parts by other spellings than kohya's alone.
TRAINERS_ONLY = frozenset({"ZImageTransformer2DModel"})


@dataclass(frozen=True)
class Kohya(PublishedLora):
    """The adapter alone, for sd-scripts, musubi-tuner, Forge and what else reads their files."""

    program: str = "kohya's sd-scripts"
    families: Collection[str] = frozenset(NETWORKS)
    names: str = "kohya's"
    keys: KeyStyle = KOHYA_KEYS
    single_file: str | None = "kohya_lora.safetensors"

    def header_texts(self, source: ExportSource) -> Mapping[str, str]:
        """The trainer's ``ss_…`` texts."""
        return training_texts(source)

    def how_to_use(self, source: ExportSource) -> str:
        """For the model card."""
        if source.facts.class_name in TRAINERS_ONLY:
            return (
                f"Give `{self.single_file}` to musubi-tuner as `--network_weights`, or as `--lora_weight` to its "
                "script that draws. ComfyUI passes over the attention layers of such a file; Palate's ComfyUI format "
                "is for it."
            )
        return (
            f"Put `{self.single_file}` among the LoRAs of your program (`models/Lora` in Forge, `models/loras` in "
            "ComfyUI), or give it to its trainer as `--network_weights`."
        )


def training_texts(source: ExportSource) -> dict[str, str]:
    """The header's ``ss_…`` texts: every value is a string, as the format has it."""
    settings = source.settings
    return {
        "ss_v2": "False",
        "ss_base_model_version": BASES[architecture_id(source.facts)],
        "ss_sd_model_name": source.base_name,
        "ss_network_module": NETWORKS[source.facts.class_name],
        "ss_network_dim": str(settings.tuning.rank),
        "ss_network_alpha": str(settings.tuning.alpha),
        "ss_network_args": json.dumps({}),
        "ss_output_name": f"{source.base_name.rsplit('/')[-1]}-{source.step}",
        "ss_seed": str(settings.seed),
        "ss_steps": str(source.step),
        "ss_max_train_steps": str(settings.iterations),
        "ss_learning_rate": str(settings.optimiser.learning_rate),
        "ss_mixed_precision": {"bfloat16": "bf16", "float32": "no"}[settings.model.precision],
        "ss_training_finished_at": str(source.manifest.created),
        "ss_training_comment": f"{source.method} on rewards, in Palate",
    }
