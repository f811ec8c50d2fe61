"""Which model is tuned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.settings.section import Section

ModelName = Literal[
    "builtin", "flux", "sd3", "chroma", "lumina2", "qwen_image", "z_image", "sana", "hunyuan_image",
    "flux2", "flux2_klein",
]  # fmt: skip


class ModelSettings(Section):
    """Which text-to-image model is tuned, and in what precision."""

    name: ModelName = Field("builtin", description="Model family.")
    folder: str | None = Field(
        None,
        description="A diffusers pipeline folder of that family to start from; empty = the built-in model's own "
        "weights (the other families have none).",
    )
    resolution: int | None = Field(
        None, ge=16, le=4096, multiple_of=16,
        description="Pixels a side of the images, a multiple of 16; empty = what the model's pipeline draws.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Precision of the transformer's arithmetic, and of frozen weights (not the built-in model's); "
        "log-probabilities and trained weights are always float32.",
    )
