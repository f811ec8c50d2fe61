"""Facts about rewards and models that the workbench shows, without loading any of them (torch-free).

The code behind the names is in `engine.rewards.REWARDS` and `engine.models.MODELS`; tests hold the names equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.settings import ModelName, RewardName


@dataclass(frozen=True)
class RewardInfo:
    """What a creator should know of a reward before choosing it."""

    title: str
    help: str
    range: tuple[float, float]
    milliseconds_an_image: float


@dataclass(frozen=True)
class ModelInfo:
    """What a creator should know of a model before choosing it.

    Attributes:
        classifier_free_guidance: a guided velocity takes two forwards, with the prompt and without; where false, the
            model takes the guidance scale as an input, or none.
        needs_folder: Palate has no weights of the family, so `model.folder` must name some.
    """

    title: str
    help: str
    image_size: int
    classifier_free_guidance: bool = True
    needs_folder: bool = False


@dataclass(frozen=True)
class ExportInfo:
    """What a creator should know of an export format before choosing it.

    Attributes:
        file_names: a fitting name for the exported file, by what was tuned.
    """

    title: str
    help: str
    file_names: dict[Literal["lora", "full"], str]


REWARD_INFO: dict[RewardName, RewardInfo] = {
    "composition": RewardInfo(
        "Composition",
        "Does the image show what the prompt asks: colours, shapes, count, positions? (built-in model's scenes only)",
        (0.0, 1.0),
        3.0,
    ),
    "vividness": RewardInfo(
        "Vividness",
        "How colourful the image is (Hasler and Süsstrunk's colourfulness, in hundredths).",
        (0.0, 2.98),
        0.1,
    ),
    "compressibility": RewardInfo(
        "Compressibility",
        "Smooth, simple images: minus the size of the 64×64 image as a JPEG, in kB.",
        (-7.0, 0.0),
        0.1,
    ),
    "incompressibility": RewardInfo(
        "Incompressibility", "Busy, detailed images: the size of the 64×64 image as a JPEG, in kB.", (0.0, 7.0), 0.1
    ),
}

MODEL_INFO: dict[ModelName, ModelInfo] = {
    "builtin": ModelInfo(
        "Built-in (64×64 scenes)",
        "Coloured shapes on plain backgrounds; small, learns in minutes on two CPU cores.",
        64,
    ),
    "flux": ModelInfo(
        "FLUX.1 (dev, Krea, schnell)",
        "Photographs to illustrations at a megapixel; 12 billion weights in a folder of your own, and a large GPU.",
        1024,
        classifier_free_guidance=False,
        needs_folder=True,
    ),
}

EXPORT_INFO: dict[str, ExportInfo] = {
    "diffusers": ExportInfo(
        "diffusers",
        "What was learned, as diffusers loads it: a LoRA file, or the whole transformer if all weights were tuned.",
        {"lora": "pytorch_lora_weights.safetensors", "full": "transformer.zip"},
    ),
    "merged": ExportInfo(
        "Whole transformer",
        "The tuned transformer complete, the LoRA added into its weights: larger, and nothing else to load.",
        {"lora": "transformer.zip", "full": "transformer.zip"},
    ),
}
