"""Facts about rewards."""

from __future__ import annotations

from dataclasses import dataclass

from engine.settings import RewardName


@dataclass(frozen=True)
class RewardInfo:
    """What a creator should know of a reward before choosing it."""

    title: str
    help: str
    range: tuple[float, float]
    milliseconds_an_image: float


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
