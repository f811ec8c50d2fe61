"""Which model is tuned, and where its weights come from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from engine.settings.section import Section

ModelName = Literal[
    "builtin", "flux", "sd3", "chroma", "lumina2", "qwen_image", "z_image", "sana", "hunyuan_image",
    "flux2", "flux2_klein",
]  # fmt: skip

# A hub's own rules for names: single dots and hyphens inside; so none can be mistaken for a path out of its folder.
_NAME = r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*"
HUB_ID = rf"^{_NAME}/{_NAME}$"
REVISION = rf"^{_NAME}(?:/{_NAME})*$"


class ModelSettings(Section):
    """Which text-to-image model is tuned, from which weights, and in what precision."""

    name: ModelName = Field("builtin", description="Model family.")
    folder: str | None = Field(
        None,
        description="A diffusers pipeline folder of that family to start from; empty = `model.hub_id`, or the built-in "
        "model's own weights (the other families have none).",
    )
    hub_id: str | None = Field(
        None, max_length=96, pattern=HUB_ID,
        description="A pipeline on the Hugging Face hub instead of a folder, such as black-forest-labs/FLUX.1-dev.",
    )
    revision: str | None = Field(
        None, max_length=100, pattern=REVISION,
        description="Commit, tag or branch of model.hub_id; empty = main. The run's settings.yaml names the commit.",
    )
    start_from: str | None = Field(
        None, min_length=1,
        description="What the base starts from instead of its own transformer: a LoRA file that is merged into it, or "
        "a transformer as a .safetensors file or a folder.",
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
    quantisation: Literal["none", "int8", "nf4"] = Field(
        "none",
        description="Frozen weights of the blocks in 8 or 4 bits while a LoRA is trained; the arithmetic stays that of "
        "model.precision. nf4 needs the extra quantisation.",
    )
    vae_slicing: bool = Field(
        True, description="Decode a batch's images one after the other (the built-in model's are decoded together)."
    )
    vae_tile: int | None = Field(
        None, ge=16, le=4096, multiple_of=16,
        description="Decode images in overlapping tiles of so many pixels a side: less memory, slightly other images; "
        "empty = whole.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.folder is not None and self.hub_id is not None:
            raise ValueError("folder and hub_id are two places for one model; keep one of them")
        if self.revision is not None and self.hub_id is None:
            raise ValueError("revision belongs to hub_id, and none is given; name it, or leave revision empty")
        return self
