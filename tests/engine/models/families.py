"""Published families by name: a tiny pipeline of each, and how its plain call is asked for guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from engine.models import TextToImage, guidance_arguments, load_model
from engine.models.plain_calls import set_up_plainly
from engine.sampling.rollout import sample_ode
from engine.settings import ModelName, ModelSettings
from tests.engine.models import tiny_pipelines
from tests.engine.models.tiny_chroma import chroma
from tests.engine.models.tiny_flux import flux
from tests.engine.models.tiny_hunyuan_image import hunyuan_image
from tests.engine.models.tiny_lumina2 import lumina2
from tests.engine.models.tiny_sana import sana

# The second is longer than the 32 tokens to which Z-Image fills up every prompt.
PROMPTS = [
    "a red circle",
    "a blue star left of a green square and a large white square above the small star and a red circle left of a star",
]


@dataclass(frozen=True)
class Family:
    """One variant of a family.

    Attributes:
        make: gives its tiny pipeline.
        scales: guidance scales that it draws with; the last is trained with.
        side: pixels a side.
    """

    name: ModelName
    make: Callable[[], DiffusionPipeline]
    scales: tuple[float, ...]
    side: int = 32

    def settings(self, folder: Path, **changes: Any) -> ModelSettings:
        """Names the folder."""
        own = {"name": self.name, "folder": str(folder), "resolution": self.side}
        return ModelSettings.model_validate(own | changes)


FAMILIES: dict[str, Family] = {
    "SD3": Family("sd3", tiny_pipelines.stable_diffusion_3, (1.0, 4.0)),
    "SD3.5 medium": Family("sd3", tiny_pipelines.stable_diffusion_3_5_medium, (1.0, 4.0)),
    "SD3.5 medium without T5": Family("sd3", lambda: tiny_pipelines.stable_diffusion_3_5_medium(False), (4.0,)),
    "SD3.5 large": Family("sd3", tiny_pipelines.stable_diffusion_3_5_large, (4.0,)),
    "Chroma": Family("chroma", chroma, (1.0, 4.0)),
    "Lumina 2": Family("lumina2", lumina2, (1.0, 4.0), side=64),
    "Qwen-Image": Family("qwen_image", tiny_pipelines.qwen_image, (1.0, 4.0)),
    "Z-Image": Family("z_image", lambda: tiny_pipelines.z_image(shift=6.0), (1.0, 4.0)),
    "Z-Image Turbo": Family("z_image", tiny_pipelines.z_image, (1.0,)),
    "SANA": Family("sana", sana, (1.0, 4.0), side=64),
    "HunyuanImage": Family("hunyuan_image", hunyuan_image, (1.0, 4.0), side=64),
    "HunyuanImage distilled": Family("hunyuan_image", lambda: hunyuan_image(distilled=True), (1.0, 3.25), side=64),
    "FLUX.2": Family("flux2", tiny_pipelines.flux2, (1.0, 4.0)),
    "FLUX.2 klein base": Family("flux2_klein", tiny_pipelines.flux2_klein, (1.0, 4.0)),
}

# FLUX.1, whose images, training and exports have tests of their own (test_flux.py), is measured with all the others.
MEASURED: dict[str, Family] = FAMILIES | {
    "FLUX.1 dev": Family("flux", lambda: flux("dev"), (1.0, 3.5)),
    "FLUX.1 schnell": Family("flux", lambda: flux("schnell"), (1.0,)),
}
# What makes a transformer of the class another size, in width, depth and heads.
_OTHER_SIZES: dict[str, dict[str, Any]] = {
    "FluxTransformer2DModel": {"num_layers": 1, "num_single_layers": 3, "num_attention_heads": 3},
    "SD3Transformer2DModel": {"num_layers": 4, "num_attention_heads": 5, "caption_projection_dim": 40},
    "ChromaTransformer2DModel": {
        "num_layers": 1, "num_single_layers": 3, "num_attention_heads": 4, "approximator_num_channels": 32,
    },
    "Lumina2Transformer2DModel": {
        "num_layers": 3, "num_refiner_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_kv_heads": 2,
    },
    "QwenImageTransformer2DModel": {"num_layers": 3, "num_attention_heads": 3},
    "ZImageTransformer2DModel": {"n_layers": 3, "n_refiner_layers": 2, "dim": 64, "n_heads": 4, "n_kv_heads": 4},
    "SanaTransformer2DModel": {
        "num_layers": 3, "num_attention_heads": 4, "num_cross_attention_heads": 4, "cross_attention_dim": 32,
        "mlp_ratio": 2.0,
    },
    "HunyuanImageTransformer2DModel": {
        "num_layers": 1, "num_single_layers": 3, "num_refiner_layers": 2, "num_attention_heads": 3,
    },
    "Flux2Transformer2DModel": {"num_layers": 2, "num_single_layers": 3, "num_attention_heads": 3, "mlp_ratio": 2.0},
}  # fmt: skip


def other_size(pipeline: Any) -> Any:
    """The pipeline with a fresh transformer of another size."""
    made = type(pipeline.transformer)
    config = dict(pipeline.transformer.config) | _OTHER_SIZES[made.__name__]
    pipeline.register_modules(transformer=made.from_config(config).eval())
    return pipeline


def call(
    family: Family, pipeline: Any, prompts: str | list[str], num_steps: int, scale: float, seed: int
) -> np.ndarray:
    """uint8 images of a plain pipeline call."""
    prompts = prompts if isinstance(prompts, str) else list(prompts)  # Z-Image writes over the list it is given
    set_up_plainly(family.name, pipeline, scale)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        prompt=prompts, num_inference_steps=num_steps, height=family.side, width=family.side,
        generator=torch.Generator().manual_seed(seed), **plain_arguments(family, prompts, scale),
    ).images  # fmt: skip
    return np.stack([np.asarray(image) for image in images])


def plain_arguments(family: Family, prompts: str | list[str], scale: float) -> dict[str, Any]:
    """What a call is told of guidance, the negative prompt once a prompt."""
    arguments = guidance_arguments(family.name, scale)
    if "negative_prompt" in arguments and isinstance(prompts, list):
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
    return arguments


def draw(model: TextToImage, prompts: list[str], num_steps: int, scale: float, seed: int) -> np.ndarray:
    """uint8 images of the engine, all of its steps an Euler step, all prompts in one forward."""
    embeddings = model.encode(prompts)
    latents = sample_ode(
        lambda x, sigma, rows: model.velocity(x, sigma, embeddings, rows, scale).detach(),
        model.noise(torch.Generator().manual_seed(seed), len(prompts)), torch.arange(len(prompts)),
        tuple(model.sigmas(num_steps).tolist()), micro_batch=len(prompts),
    )  # fmt: skip
    return model.decode(latents)


def open_model(family: Family, folder: Path, **changes: Any) -> TextToImage:
    """The engine's model of a folder."""
    return load_model(family.settings(folder, **changes))


def difference(first: np.ndarray, second: np.ndarray) -> int:
    """The largest difference of a pixel."""
    return int(np.abs(first.astype(int) - second.astype(int)).max())
