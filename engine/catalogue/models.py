"""Facts about models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.settings import ModelName


@dataclass(frozen=True)
class Usual:
    """How a family's users draw with it, and how it is tuned unless told otherwise.

    Attributes:
        guidance_scale: as in `sampling.guidance_scale`; 1 = none.
        num_steps: denoising steps of a finished image, as the plain pipeline takes by default; of a distilled model, as
            its authors do.
        training_steps: denoising steps of training images; MixGRPO's 25 but for a model made for fewer.
        shift: as in `sampling.shift`; FLUX.1 dev's is MixGRPO's own.
    """

    guidance_scale: float
    num_steps: int
    training_steps: int = 25
    shift: float | Literal["model"] = "model"


@dataclass(frozen=True)
class ModelInfo:
    """What a creator should know of a model before choosing it.

    Attributes:
        weights: how many the transformer has, and what they need.
        licence: of the published weights, in words; each model's page has its terms.
        classifier_free_guidance: a guided velocity takes two forwards, with the prompt and without; where false, the
            model takes the guidance scale as an input, or none.
        needs_folder: Palate has no weights of the family, so `model.folder` or `model.hub_id` must name some.
        pipelines: diffusers' pipeline classes of the family, as a folder's model_index.json names them.
        text_tokens: tokens that a long prompt is to the transformer, as the pipeline fills or cuts it.
        usual: None for the built-in model, whose presets say it all.
        distilled: the same of the family's distilled models, where a folder tells them apart.
        hub_ids: published pipelines.
    """

    title: str
    help: str
    image_size: int
    weights: str
    licence: str
    classifier_free_guidance: bool = True
    needs_folder: bool = False
    pipelines: tuple[str, ...] = ()
    text_tokens: int = 512
    usual: Usual | None = None
    distilled: Usual | None = None
    hub_ids: tuple[str, ...] = ()


MODEL_INFO: dict[ModelName, ModelInfo] = {
    "builtin": ModelInfo(
        "Built-in (64×64 scenes)",
        "Coloured shapes on plain backgrounds; small, learns in minutes on two CPU cores.",
        64,
        "5 million weights, which are here",
        "Apache-2.0",
        pipelines=("StableDiffusion3Pipeline",),
        text_tokens=17,
    ),
    "flux": ModelInfo(
        "FLUX.1 (dev, Krea, schnell)",
        "Photographs to illustrations at a megapixel.",
        1024,
        "12 billion weights; a large GPU",
        "dev and Krea: FLUX.1 [dev] Non-Commercial; schnell: Apache-2.0",
        classifier_free_guidance=False,
        needs_folder=True,
        pipelines=("FluxPipeline",),
        usual=Usual(3.5, 28, shift=3.0),
        distilled=Usual(1.0, 4, 4),
        hub_ids=(
            "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-Krea-dev", "black-forest-labs/FLUX.1-schnell",
        ),
    ),
    "sd3": ModelInfo(
        "Stable Diffusion 3 and 3.5 (medium, large)",
        "Photographs to illustrations at a megapixel.",
        1024,
        "2 to 8 billion weights; a GPU",
        "Stability AI Community: free below a yearly revenue of a million dollars",
        needs_folder=True,
        pipelines=("StableDiffusion3Pipeline",),
        text_tokens=333,
        usual=Usual(4.5, 28),
        hub_ids=(
            "stabilityai/stable-diffusion-3.5-medium", "stabilityai/stable-diffusion-3.5-large",
            "stabilityai/stable-diffusion-3-medium-diffusers",
        ),
    ),
    "chroma": ModelInfo(
        "Chroma",
        "FLUX.1 schnell made smaller and trained anew.",
        1024,
        "9 billion weights; a large GPU",
        "Apache-2.0",
        needs_folder=True,
        pipelines=("ChromaPipeline",),
        usual=Usual(4.0, 35),
        hub_ids=("lodestones/Chroma1-HD", "lodestones/Chroma1-Base"),
    ),
    "lumina2": ModelInfo(
        "Lumina-Image 2.0",
        "Photographs to illustrations at a megapixel.",
        1024,
        "2.6 billion weights; a GPU",
        "Apache-2.0",
        needs_folder=True,
        pipelines=("Lumina2Pipeline",),
        text_tokens=256,
        usual=Usual(4.0, 30),
        hub_ids=("Alpha-VLLM/Lumina-Image-2.0",),
    ),
    "qwen_image": ModelInfo(
        "Qwen-Image",
        "Images with much legible text, at a megapixel.",
        1024,
        "20 billion weights; a large GPU",
        "Apache-2.0",
        needs_folder=True,
        pipelines=("QwenImagePipeline",),
        usual=Usual(4.0, 50),
        hub_ids=("Qwen/Qwen-Image",),
    ),
    "z_image": ModelInfo(
        "Z-Image (base, Turbo)",
        "Photographs at a megapixel.",
        1024,
        "6 billion weights; a GPU",
        "Apache-2.0",
        needs_folder=True,
        pipelines=("ZImagePipeline",),
        usual=Usual(4.0, 50),
        distilled=Usual(1.0, 8, 8),
        hub_ids=("Tongyi-MAI/Z-Image", "Tongyi-MAI/Z-Image-Turbo"),
    ),
    "sana": ModelInfo(
        "SANA and SANA 1.5",
        "Fast at a megapixel and above.",
        1024,
        "0.6 to 4.8 billion weights; a GPU",
        "NVIDIA's own (NSCL v2-custom), and Gemma's terms for the text encoder",
        needs_folder=True,
        pipelines=("SanaPipeline",),
        text_tokens=300,
        usual=Usual(4.5, 20),
        hub_ids=(
            "Efficient-Large-Model/Sana_1600M_1024px_diffusers", "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers",
            "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers",
        ),
    ),
    "hunyuan_image": ModelInfo(
        "HunyuanImage 2.1",
        "Four megapixels and no fewer; words in quotes drawn as text.",
        2048,
        "17 billion weights; a very large GPU",
        "Tencent Hunyuan Community, which leaves out the European Union, the United Kingdom and South Korea",
        needs_folder=True,
        pipelines=("HunyuanImagePipeline",),
        usual=Usual(3.5, 50),
        distilled=Usual(3.25, 8, 8),
        hub_ids=("hunyuanvideo-community/HunyuanImage-2.1-Diffusers",),
    ),
    "flux2": ModelInfo(
        "FLUX.2 (dev)",
        "Photographs to illustrations at a megapixel.",
        1024,
        "32 billion weights; a vast GPU",
        "FLUX.2 [dev] Non-Commercial",
        classifier_free_guidance=False,
        needs_folder=True,
        pipelines=("Flux2Pipeline",),
        usual=Usual(4.0, 50),
        hub_ids=("black-forest-labs/FLUX.2-dev",),
    ),
    "flux2_klein": ModelInfo(
        "FLUX.2 klein (base, distilled)",
        "FLUX.2 in small.",
        1024,
        "4 or 9 billion weights; a GPU",
        "4B: Apache-2.0; 9B: FLUX Non-Commercial",
        needs_folder=True,
        pipelines=("Flux2KleinPipeline",),
        usual=Usual(4.0, 50),
        distilled=Usual(1.0, 4, 4),
        hub_ids=(
            "black-forest-labs/FLUX.2-klein-base-4B", "black-forest-labs/FLUX.2-klein-base-9B",
            "black-forest-labs/FLUX.2-klein-4B", "black-forest-labs/FLUX.2-klein-9B",
        ),
    ),
}
