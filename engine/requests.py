"""What `palate generate` and `palate evaluate` are asked, typed, and free of torch.

The command line builds a request, and refuses what cannot work, before the engine's process is started with it. What is
left out is as in the run: its evaluation's seed, steps and guidance, its device, its rewards, its held-out prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from engine.settings import EvaluationSettings, Section, UnitInterval
from engine.settings_text import SettingsError, explain


class DrawingRequest(Section):
    """A checkpoint, how to draw with it, and where to leave the images."""

    run: Path = Field(description="Folder of a run, or of one of its checkpoints.")
    step: int | None = Field(None, ge=0, description="Which of the run's checkpoints; empty = the newest.")
    seed: int | None = Field(None, description="Prompt i is drawn from seed + i.")
    num_steps: int | None = Field(None, description="Denoising steps T.")
    guidance_scale: float | None = Field(None, description="Classifier-free guidance; 1 = none.")
    hybrid: UnitInterval = Field(
        1.0, description="Share p of the steps drawn with the tuned weights, the first round(p·T); then the base model."
    )
    device: Literal["auto", "cpu", "cuda"] | None = Field(None, description="auto = a GPU if there is one.")
    out: Path = Field(description="Folder for what is made.")

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        self.evaluation(EvaluationSettings())
        return self

    def evaluation(self, of_run: EvaluationSettings) -> EvaluationSettings:
        """A run's evaluation settings with what is asked for instead. Raises SettingsError if that is out of range."""
        asked = {"seed": self.seed, "num_steps": self.num_steps, "guidance_scale": self.guidance_scale}
        given = {name: value for name, value in asked.items() if value is not None}
        try:
            return EvaluationSettings.model_validate(of_run.model_dump() | given)
        except ValidationError as error:
            raise SettingsError(explain(error)) from error


class GenerationRequest(DrawingRequest):
    """Images of prompts."""

    prompts: tuple[str, ...] = Field(min_length=1, description="An image each.")

    @model_validator(mode="after")
    def _with_words(self) -> Self:
        if not all(prompt.strip() for prompt in self.prompts):
            raise ValueError("A prompt is empty; write what the image should show")
        return self


class ScoringRequest(Section):
    """One image, scored by rewards."""

    image: Path = Field(description="A PNG, JPEG or other image file.")
    prompt: str = Field("", description="What the image was made for.")
    rewards: tuple[str, ...] = Field(
        (), description="By label or name; empty = those of the settings, or all that can score here."
    )
    settings: Path | None = Field(None, description="Settings of a run, whose rewards have their options.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = a GPU if there is one.")


class EvaluationRequest(DrawingRequest):
    """Scores of a checkpoint on a set of prompts, by itself or in pairs with another."""

    against: Literal["base"] | Path | None = Field(
        None, description="What to compare with: a run, a checkpoint, or the base model."
    )
    against_hybrid: UnitInterval = Field(1.0, description="The same as `hybrid`, for `against`.")
    prompts: Path | None = Field(None, description="A .txt, .csv or .jsonl file; empty = the run's held-out prompts.")
    num_prompts: int | None = Field(
        None, ge=1, le=10_000, description="The first so many prompts; empty = all of a file, as many as the run draws."
    )
    rewards: tuple[str, ...] = Field(
        (), description="What to score with, by label or name; empty = the run's rewards."
    )
