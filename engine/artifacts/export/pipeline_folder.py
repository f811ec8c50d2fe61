"""The whole pipeline as a diffusers folder: the base's parts as they are, and the tuned transformer in its place."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.artifacts.export.base import BaseModelRelation, Held
from engine.artifacts.export.merged import SUBFOLDER, Merged, forget_where
from engine.artifacts.export.model_card import drawing_code
from engine.artifacts.export.source import ExportSource
from engine.models.pipelines import open_pipeline

INDEX = "model_index.json"


@dataclass(frozen=True)
class PipelineFolder:
    """Everything that is needed to draw."""

    relation: BaseModelRelation = "finetune"
    holds: Held = "weights"
    single_file: str | None = None
    checked_by: str = "plain diffusers loads it, without the base model, and"

    def write(self, source: ExportSource, folder: Path) -> None:
        """Write the pipeline into an empty folder. The parts that were not tuned keep their own precision."""
        index = json.loads((source.base / INDEX).read_text(encoding="utf-8"))
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for part in index:
            if (source.base / part).is_dir() and part != SUBFOLDER:
                shutil.copytree(source.base / part, folder / part)
        for config in (folder / INDEX, *folder.glob("*/config.json")):
            forget_where(config)
        Merged().write(source, folder)

    def load(self, source: ExportSource, folder: Path) -> Any:
        """The pipeline of the folder alone."""
        return open_pipeline(folder, torch.float32)

    def weight_difference(self, source: ExportSource, folder: Path) -> float | None:
        """None: diffusers reads it."""
        return None

    def how_to_use(self, source: ExportSource) -> str:
        """Python for the model card."""
        return drawing_code(
            source,
            "import torch\n"
            "from diffusers import DiffusionPipeline\n\n"
            'pipe = DiffusionPipeline.from_pretrained(".", dtype=torch.float32)\n',
        )
