"""Facts about export formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ExportInfo:
    """What a creator should know of an export format before choosing it.

    Attributes:
        file_names: a fitting name for the exported file, by what was tuned.
    """

    title: str
    help: str
    file_names: dict[Literal["lora", "full"], str]


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
