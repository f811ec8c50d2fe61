"""The tuned transformer whole, as a diffusers model folder: ``transformer/``, sharded with an index if it is large.

Its place is that of the base pipeline's own transformer. A LoRA is added into the weights (W + alpha/rank·BA).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.models import AutoModel
from safetensors.torch import load_file

from engine.artifacts.export.base import BaseModelRelation, Held
from engine.artifacts.export.header import write_with_header
from engine.artifacts.export.model_card import drawing_code
from engine.artifacts.export.source import ExportSource
from engine.artifacts.export.tuned import tuned_model
from engine.models.pipelines import open_pipeline

SUBFOLDER = "transformer"


@dataclass(frozen=True)
class Merged:
    """All weights of the transformer."""

    relation: BaseModelRelation = "finetune"
    holds: Held = "weights"
    single_file: str | None = None
    checked_by: str = "plain diffusers loads it and"

    def write(self, source: ExportSource, folder: Path) -> None:
        """Write the ``transformer`` folder into a folder that has none."""
        transformer: Any = tuned_model(source, "weights").transformer
        transformer.to(getattr(torch, source.precision))
        transformer.save_pretrained(folder / SUBFOLDER, safe_serialization=True)
        forget_where(folder / SUBFOLDER / "config.json")
        for file in sorted((folder / SUBFOLDER).glob("*.safetensors")):
            write_with_header(source, file, load_file(file), "whole")

    def load(self, source: ExportSource, folder: Path) -> Any:
        """The base pipeline with the tuned transformer in its own one's place."""
        transformer: ModelMixin = AutoModel.from_pretrained(
            str(folder), subfolder=SUBFOLDER, dtype=torch.float32, local_files_only=True
        )
        return open_pipeline(source.base, torch.float32, transformer=transformer)

    def weight_difference(self, source: ExportSource, folder: Path) -> float | None:
        """None: diffusers reads it."""
        return None

    def how_to_use(self, source: ExportSource) -> str:
        """Python for the model card."""
        return drawing_code(
            source,
            "import torch\n"
            "from diffusers import AutoModel, DiffusionPipeline\n\n"
            f'transformer = AutoModel.from_pretrained(".", subfolder="{SUBFOLDER}", dtype=torch.float32)\n'
            "pipe = DiffusionPipeline.from_pretrained(\n"
            f'    "{source.base_path}", transformer=transformer, dtype=torch.float32  # the base model\n'
            ")\n",
        )


def forget_where(config: Path) -> None:
    """Take the folder that the base was read from out of a saved configuration."""
    data = json.loads(config.read_text(encoding="utf-8"))
    data.pop("_name_or_path", None)
    config.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
