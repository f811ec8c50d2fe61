"""Facts about models."""

from __future__ import annotations

from dataclasses import dataclass

from engine.settings import ModelName


@dataclass(frozen=True)
class ModelInfo:
    """What a creator should know of a model before choosing it.

    Attributes:
        classifier_free_guidance: a guided velocity takes two forwards, with the prompt and without; where false, the
            model takes the guidance scale as an input, or none.
        needs_folder: Palate has no weights of the family, so `model.folder` or `model.hub_id` must name some.
        pipelines: diffusers' pipeline classes of the family, as a folder's model_index.json names them.
        text_tokens: tokens that a long prompt is to the transformer, as the pipeline fills or cuts it.
    """

    title: str
    help: str
    image_size: int
    classifier_free_guidance: bool = True
    needs_folder: bool = False
    pipelines: tuple[str, ...] = ()
    text_tokens: int = 512


MODEL_INFO: dict[ModelName, ModelInfo] = {
    "builtin": ModelInfo(
        "Built-in (64×64 scenes)",
        "Coloured shapes on plain backgrounds; small, learns in minutes on two CPU cores.",
        64,
        pipelines=("StableDiffusion3Pipeline",),
        text_tokens=17,
    ),
    "flux": ModelInfo(
        "FLUX.1 (dev, Krea, schnell)",
        "Photographs to illustrations at a megapixel; 12 billion weights of your own or the hub's, and a large GPU.",
        1024,
        classifier_free_guidance=False,
        needs_folder=True,
        pipelines=("FluxPipeline",),
    ),
    "sd3": ModelInfo(
        "Stable Diffusion 3 and 3.5 (medium, large)",
        "Photographs to illustrations at a megapixel; 2 to 8 billion weights of your own or the hub's, and a GPU.",
        1024,
        needs_folder=True,
        pipelines=("StableDiffusion3Pipeline",),
        text_tokens=333,
    ),
    "chroma": ModelInfo(
        "Chroma",
        "FLUX.1 schnell made smaller and trained anew; 9 billion weights of your own or the hub's, and a large GPU.",
        1024,
        needs_folder=True,
        pipelines=("ChromaPipeline",),
    ),
    "lumina2": ModelInfo(
        "Lumina-Image 2.0",
        "Photographs to illustrations at a megapixel; 2.6 billion weights of your own or the hub's, and a GPU.",
        1024,
        needs_folder=True,
        pipelines=("Lumina2Pipeline",),
        text_tokens=256,
    ),
    "qwen_image": ModelInfo(
        "Qwen-Image",
        "Images with much legible text, at a megapixel; 20 billion weights of your own or the hub's, and a large GPU.",
        1024,
        needs_folder=True,
        pipelines=("QwenImagePipeline",),
    ),
    "z_image": ModelInfo(
        "Z-Image (base, Turbo)",
        "Photographs at a megapixel from 6 billion weights of your own or the hub's, and a GPU.",
        1024,
        needs_folder=True,
        pipelines=("ZImagePipeline",),
    ),
    "sana": ModelInfo(
        "SANA and SANA 1.5",
        "Fast at a megapixel and above; 0.6 to 4.8 billion weights of your own or the hub's, and a GPU.",
        1024,
        needs_folder=True,
        pipelines=("SanaPipeline",),
        text_tokens=300,
    ),
    "hunyuan_image": ModelInfo(
        "HunyuanImage 2.1",
        "Four megapixels, and words in quotes drawn as text; 17 billion weights of your own or the hub's, and a very "
        "large GPU.",
        2048,
        needs_folder=True,
        pipelines=("HunyuanImagePipeline",),
    ),
    "flux2": ModelInfo(
        "FLUX.2 (dev)",
        "Photographs to illustrations at a megapixel; 32 billion weights of your own or the hub's, and a vast GPU.",
        1024,
        classifier_free_guidance=False,
        needs_folder=True,
        pipelines=("Flux2Pipeline",),
    ),
    "flux2_klein": ModelInfo(
        "FLUX.2 klein (base, distilled)",
        "FLUX.2 in small; 4 or 9 billion weights of your own or the hub's, and a GPU.",
        1024,
        needs_folder=True,
        pipelines=("Flux2KleinPipeline",),
    ),
}
