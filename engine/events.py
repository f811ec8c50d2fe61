"""What the engine says while it works: typed events, one JSON object a line, free of torch.

The engine calls one function with each event; `engine.process` writes them to ``events.jsonl``, and a worker reads
them from there. `step` is the number of finished training iterations; paths are relative to the run's folder.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class EventBase(BaseModel):
    """Fields of every event."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    time: float = Field(description="Seconds since the epoch when the event was made.")


class Started(EventBase):
    """The run begins, or resumes after `step` finished iterations (rows past `step` are then void)."""

    kind: Literal["started"] = "started"
    step: int
    iterations: int
    device: str
    versions: dict[str, str] = Field(description="python, torch, diffusers, …, palate, git commit.")
    base: str = Field("", description="The base model: its name, the hub's commit, and what it was started from.")


class PhaseSeconds(BaseModel):
    """Where an iteration's time went, in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sample: float
    decode: float
    score: float
    train: float


class IterationDone(EventBase):
    """One training iteration is done."""

    kind: Literal["iteration"] = "iteration"
    step: int
    rewards: dict[str, float] = Field(description="Mean raw score of each reward over the iteration's images.")
    spreads: dict[str, float] = Field(
        {}, description="Standard deviation of each reward's raw scores within a group, averaged over the groups."
    )
    failed_scores: int = Field(0, description="Scores that failed and were masked.")
    loss: float
    grad_norm: float
    ratio_drift: float = Field(
        description="Largest |ρ−1| of the first update, before any weight has moved; for DiffusionNFT, the largest "
        "relative distance from the sampling policy's velocity."
    )
    clipped_share: float
    diversity: float | None = Field(
        None, description="Root mean square difference of two images of one prompt, in [0, 1]; none if it is one image."
    )
    window_start: int
    seconds: PhaseSeconds
    num_forwards: int = Field(
        description="Transformer forwards of one image without gradient: rollout and reference policy."
    )
    num_trained_steps: int = Field(description="Image-steps trained on.")
    eta_seconds: float = Field(description="Estimated seconds to the end of the run.")


class SampleImage(BaseModel):
    """One evaluation image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int
    prompt: str
    seed: int
    path: str
    rewards: dict[str, float]


class SamplesDrawn(EventBase):
    """The held-out prompts were drawn and scored. `metrics` holds extra means, such as the all-correct share."""

    kind: Literal["samples"] = "samples"
    step: int
    images: tuple[SampleImage, ...]
    rewards: dict[str, float]
    metrics: dict[str, float] = {}
    seconds: float


class CheckpointSaved(EventBase):
    """A checkpoint is complete on disk."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str
    num_bytes: int


class Message(EventBase):
    """A line for the log, in plain words."""

    kind: Literal["message"] = "message"
    level: Literal["info", "warning", "error"] = "info"
    text: str
    step: int | None = Field(
        None, description="The iteration it is about, told again where that is done again; none: it is of the process."
    )


class Finished(EventBase):
    """The run is done: all iterations, or stopped early (by a signal) with a checkpoint at `step`."""

    kind: Literal["finished"] = "finished"
    step: int
    outcome: Literal["completed", "stopped", "failed"]
    reason: str = ""


Event = Annotated[
    Started | IterationDone | SamplesDrawn | CheckpointSaved | Message | Finished, Field(discriminator="kind")
]
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: str) -> Event:
    """The event of one JSON line. Raises pydantic.ValidationError if it is none."""
    return _ADAPTER.validate_json(line)
