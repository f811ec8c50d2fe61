"""What there is to export: a run's settings, the weights of one of its checkpoints, and what was measured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from engine.artifacts.export.base_model import Licence, hub_name, read_licence, revision_of
from engine.artifacts.export.transformer_facts import TransformerFacts, transformer_facts
from engine.artifacts.manifest import Manifest, find_checkpoint
from engine.artifacts.trained import read_trained
from engine.catalogue import ExportPrecision
from engine.events import SamplesDrawn, Started, parse_event
from engine.models import base_in_words, guidance_arguments, model_folder
from engine.models.plain_calls import setup_code
from engine.models.tiling import Tiling, tiling_of
from engine.prompts import load_prompts
from engine.settings import RewardSettings, RunSettings
from engine.settings_text import read_settings

NUM_CHECK_PROMPTS = 2
_HUB_ID = re.compile(r"(?!\.)[\w.-]+/(?!\.)[\w.-]+")
_NO_HOST = "reward-server.invalid"


class ExportError(ValueError):
    """An export that cannot be made, in a sentence for a person."""


@dataclass(frozen=True)
class ExportSource:
    """One checkpoint of a run.

    Attributes:
        run: the run's folder.
        settings: the run's settings.
        manifest: the checkpoint's manifest.
        weights: the trained tensors, by the names the checkpoint gives them; the averaged ones where there are any.
        averaged: whether `weights` are the running average.
        base: the pipeline folder of the model that was tuned.
        samples: what the gallery shows, step by step.
        device: what the run was made on, as it said at its start ("" if it did not).
        precision: what the exported weights are held in.
        relative_to: the base model in full, as the run said it: name, commit, what it was started from.
    """

    run: Path
    settings: RunSettings
    manifest: Manifest
    weights: dict[str, Tensor]
    averaged: bool
    base: Path
    samples: tuple[SamplesDrawn, ...]
    device: str
    relative_to: str
    precision: ExportPrecision = "float32"

    def stored(self, tensor: Tensor) -> Tensor:
        """A weight as the export holds it."""
        return tensor.to(getattr(torch, self.precision))

    @cached_property
    def facts(self) -> TransformerFacts:
        """What the base's transformer is."""
        return transformer_facts(self.base)

    @cached_property
    def licence(self) -> Licence:
        """The base model's licence, which what was tuned from it inherits."""
        model = self.settings.model
        own = model.folder is None and model.hub_id is None
        return Licence("apache-2.0") if own else read_licence(self.base)

    @cached_property
    def base_revision(self) -> str:
        """Which weights of the base model these are."""
        return revision_of(self.base)

    @property
    def step(self) -> int:
        """Finished iterations at the checkpoint."""
        return self.manifest.step

    @property
    def method(self) -> str:
        """What tuned it, as its authors call it: GRPO where every step but the last is stochastic, else MixGRPO."""
        settings = self.settings
        if settings.method == "nft":
            return "DiffusionNFT"
        return "MixGRPO" if settings.window.size < settings.sampling.num_steps - 1 else "GRPO"

    @property
    def base_name(self) -> str:
        """The base model's name: on its hub, or its folder's without those that it lies in."""
        model = self.settings.model
        if not model.folder:
            return model.hub_id or f"palate-{model.name}"
        return hub_name(Path(model.folder)) or Path(model.folder).name

    @property
    def base_path(self) -> str:
        """Where a reader finds the base pipeline: on the hub, beside the files, or in a checkout of Palate."""
        model = self.settings.model
        return self.base_name if model.hub_id or model.folder else "engine/builtin/weights"

    @property
    def call(self) -> dict[str, Any]:
        """Arguments, besides prompt and generator, of the plain pipeline call that draws a tile of the gallery."""
        evaluation, model = self.settings.evaluation, self.settings.model
        size = {"height": model.resolution, "width": model.resolution} if model.resolution else {}
        guidance = guidance_arguments(model.name, evaluation.guidance_scale)
        return size | {"num_inference_steps": evaluation.num_steps} | guidance

    @cached_property
    def tiling(self) -> Tiling | None:
        """How images are decoded in tiles, if they are."""
        tile = self.settings.model.vae_tile
        return None if tile is None else tiling_of(self.base, tile)

    @property
    def setup_code(self) -> str:
        """Lines of Python that change the loaded pipeline `pipe` before that call; "" for most families."""
        own = setup_code(self.settings.model.name, self.base, self.settings.evaluation.guidance_scale)
        return own if self.tiling is None else own + self.tiling.code()

    def check_prompts(self) -> list[str]:
        """The first prompts of the gallery, or of the held-out ones if nothing has been drawn in this folder yet."""
        if self.samples:
            return [image.prompt for image in self.samples[-1].images[:NUM_CHECK_PROMPTS]]
        return list(load_prompts(self.settings).held_out[:NUM_CHECK_PROMPTS])

    def public_settings(self) -> RunSettings:
        """The settings without the folders, and the servers' addresses, of the machine that they were used on."""
        model, prompts = self.settings.model, self.settings.prompts
        return self.settings.model_copy(
            update={
                "model": model.model_copy(
                    update={"folder": _name(model.folder), "start_from": _name(model.start_from)}
                ),
                "prompts": prompts.model_copy(
                    update={"file": _name(prompts.file), "evaluation_file": _name(prompts.evaluation_file)}
                ),
                "rewards": tuple(_public_reward(reward) for reward in self.settings.rewards),
            }
        )

    def samples_at(self, step: int) -> SamplesDrawn | None:
        """What was drawn after `step` iterations, if anything was."""
        return next((drawn for drawn in self.samples if drawn.step == step), None)


def read_source(run: Path, step: int | None, precision: ExportPrecision = "float32") -> ExportSource:
    """The checkpoint of `step`, or the newest that is whole, of the run in a folder, to be held in `precision`.

    Raises CheckpointError if there is none or that one is damaged, SettingsError if the run's settings cannot be read.
    """
    settings = read_settings(run / "settings.yaml")
    trained = read_trained(find_checkpoint(run, step))
    samples, started = _read_events(run / "events.jsonl")
    return ExportSource(
        run, settings, trained.manifest, trained.tensors, trained.averaged, model_folder(settings.model), samples,
        device=started.device if started else "",
        relative_to=(started.base if started else "") or base_in_words(settings.model),
        precision=precision,
    )  # fmt: skip


def _read_events(path: Path) -> tuple[tuple[SamplesDrawn, ...], Started | None]:
    """The evaluations in an event file, and its newest start; a line that is still being written ends it."""
    samples: list[SamplesDrawn] = []
    started: Started | None = None
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            event = parse_event(line)
        except ValueError:
            break
        if isinstance(event, SamplesDrawn):
            samples.append(event)
        elif isinstance(event, Started):
            started = event
    return tuple(samples), started


def _public_reward(reward: RewardSettings) -> RewardSettings:
    """A reward whose weights are a hub's id, or a folder's name alone, and whose server is nowhere."""
    weights, server = reward.weights, reward.server
    if weights is not None and not _HUB_ID.fullmatch(weights):
        weights = Path(weights).name
    if server is not None:
        server = server.model_copy(update={"url": urlsplit(server.url)._replace(netloc=_NO_HOST).geturl()})
    return reward.model_copy(update={"weights": weights, "server": server})


def _name(path: str | None) -> str | None:
    return Path(path).name if path else None
