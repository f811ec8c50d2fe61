"""What `palate generate` and `palate evaluate` leave beside their images: how they were made, and scores (torch-free).

`generation.json` and `evaluation.json` hold one report each, all that is needed to repeat it: request, settings, seeds,
checkpoint and versions. Paths of images are relative to the report's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from engine.intervals import Comparison, Estimate
from engine.requests import EvaluationRequest, GenerationRequest
from engine.settings import RunSettings, Section

GENERATION_NAME = "generation.json"
EVALUATION_NAME = "evaluation.json"
GRID_NAME = "grid.png"


class DrawingSettings(Section):
    """How images were drawn: as the model's plain pipeline draws them, prompt i from seed + i."""

    seed: int
    num_steps: int
    guidance_scale: float
    resolution: int | None = Field(description="Pixels a side; none = what the model's pipeline draws.")
    precision: Literal["float32", "bfloat16"]
    device: Literal["cpu", "cuda"]
    device_name: str = Field(description='"CPU", or the name of the GPU.')
    micro_batch: int = Field(description="Images in a batch; others may round otherwise in the last digit.")


class DrawingModel(Section):
    """The model that drew: a checkpoint, or the base model."""

    name: str = Field(description="In a few words, as tables and grids show it.")
    checkpoint: Path | None = Field(description="Folder of the checkpoint; none for the base model.")
    step: int | None = Field(description="Finished training iterations at the checkpoint.")
    averaged: bool = Field(description="The weights are the run's running average.")
    num_tuned_steps: int = Field(description="Steps drawn with the tuned weights; the base model drew the rest.")
    settings: RunSettings = Field(description="Settings of the run; for the base model, of the run it is the base of.")
    settings_digest: str
    trained_with: dict[str, str] = Field(description="Versions at the time the checkpoint was written.")


class DrawnImage(Section):
    """One image."""

    prompt: str
    seed: int
    path: str


class ScoredImage(DrawnImage):
    """One image with its scores by reward and further measure; what could not be scored is missing."""

    scores: dict[str, float]


class Generation(Section):
    """Images of prompts."""

    created: float = Field(description="Seconds since the epoch.")
    request: GenerationRequest
    drawing: DrawingSettings
    model: DrawingModel
    images: tuple[DrawnImage, ...]
    versions: dict[str, str]


class Scored(Section):
    """One model's images, and the mean of each measure over them."""

    model: DrawingModel
    images: tuple[ScoredImage, ...]
    means: dict[str, Estimate]
    notes: tuple[str, ...] = Field(description="Sentences on scores that failed; they are left out of the means.")


class Evaluation(Section):
    """A checkpoint's scores, and those of what it is compared with; image i of both has the same prompt and seed."""

    created: float = Field(description="Seconds since the epoch.")
    request: EvaluationRequest
    drawing: DrawingSettings
    prompts_from: str = Field(description="The prompt file, or what stands for it.")
    evaluated: Scored
    against: Scored | None
    comparisons: dict[str, Comparison] = Field(description="By measure: the evaluated model against the other.")
    versions: dict[str, str]
    seconds: float
