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

from engine.artifacts.export.base import BaseModelRelation
from engine.artifacts.export.header import header
from engine.artifacts.export.source import ExportSource
from engine.artifacts.export.tuned import tuned_model
from engine.artifacts.tensor_files import tensor_sha256, write_tensors
from engine.models.pipelines import open_pipeline

SUBFOLDER = "transformer"


@dataclass(frozen=True)
class Merged:
    """All weights of the transformer, in float32."""

    relation: BaseModelRelation = "finetune"
    single_file: str | None = None

    def write(self, source: ExportSource, folder: Path) -> None:
        """Write the ``transformer`` folder into an empty folder."""
        transformer: Any = tuned_model(source).transformer
        if source.settings.tuning.method == "lora":
            transformer.fuse_lora()
            transformer.unload_lora()
        transformer.save_pretrained(folder / SUBFOLDER, safe_serialization=True)
        _forget_where(folder / SUBFOLDER / "config.json")
        for file in sorted((folder / SUBFOLDER).glob("*.safetensors")):
            texts = header(source, "") | {"modelspec.hash_sha256": "0x" + tensor_sha256(file)}
            write_tensors(file, load_file(file), texts)

    def load(self, base: Path, folder: Path) -> Any:
        """The base pipeline with the tuned transformer in its own one's place."""
        transformer: ModelMixin = AutoModel.from_pretrained(
            str(folder), subfolder=SUBFOLDER, dtype=torch.float32, local_files_only=True
        )
        return open_pipeline(base, torch.float32, transformer=transformer)

    def how_to_load(self, source: ExportSource) -> str:
        """Python for the model card."""
        return (
            "import torch\n"
            "from diffusers import AutoModel, DiffusionPipeline\n\n"
            f'transformer = AutoModel.from_pretrained(".", subfolder="{SUBFOLDER}", dtype=torch.float32)\n'
            "pipe = DiffusionPipeline.from_pretrained(\n"
            f'    "{source.base_path}", transformer=transformer, dtype=torch.float32  # the base model\n'
            ")\n"
        )


def _forget_where(config: Path) -> None:
    """Take the folder that the base was read from out of a saved configuration."""
    data = json.loads(config.read_text(encoding="utf-8"))
    data.pop("_name_or_path", None)
    config.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
