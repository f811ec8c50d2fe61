"""A LoRA as diffusers itself writes it: ``pytorch_lora_weights.safetensors``, for `load_lora_weights`.

Keys are ``transformer.<module>.lora_A.weight`` and ``….lora_B.weight``. The scale alpha/rank travels in the header's
``lora_adapter_metadata``: without it, diffusers would take alpha for the rank.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.artifacts.export.base import BaseModelRelation
from engine.artifacts.export.header import header
from engine.artifacts.export.source import ExportError, ExportSource
from engine.artifacts.tensor_files import tensor_sha256, write_tensors
from engine.models.pipelines import open_pipeline
from engine.models.plain_calls import load_lora, lora_code

FILE_NAME = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."


@dataclass(frozen=True)
class DiffusersLora:
    """The adapter alone, for use with the base model."""

    relation: BaseModelRelation = "adapter"
    single_file: str | None = FILE_NAME

    def write(self, source: ExportSource, folder: Path) -> None:
        """Write the adapter into an empty folder."""
        tensors = {PREFIX + key: tensor for key, tensor in source.weights.items()}
        texts = header(source, "lora") | {"lora_adapter_metadata": json.dumps(adapter_metadata(source), sort_keys=True)}
        path = folder / FILE_NAME
        write_tensors(path, tensors, texts)
        # The hash is of the tensors alone, so writing it into the header leaves it true.
        write_tensors(path, tensors, texts | {"modelspec.hash_sha256": "0x" + tensor_sha256(path)})

    def load(self, base: Path, folder: Path) -> Any:
        """The base pipeline with the adapter."""
        pipeline = open_pipeline(base, torch.float32)
        load_lora(pipeline, folder, FILE_NAME)
        return pipeline

    def how_to_load(self, source: ExportSource) -> str:
        """Python for the model card."""
        return (
            "import torch\n"
            "from diffusers import DiffusionPipeline\n\n"
            f'pipe = DiffusionPipeline.from_pretrained("{source.base_path}", dtype=torch.float32)  # the base model\n'
            f"{lora_code(source.settings.model.name, FILE_NAME)}"
        )


def adapter_metadata(source: ExportSource) -> dict[str, Any]:
    """LoraConfig's arguments that rebuild the adapter, with diffusers' prefix. Raises ExportError on a foreign rank."""
    tuning = source.settings.tuning
    ranks = {tensor.shape[0] for key, tensor in source.weights.items() if key.endswith(".lora_A.weight")}
    if ranks != {tuning.rank}:
        found = ", ".join(map(str, sorted(ranks))) or "none"
        raise ExportError(
            f"The run's LoRA rank is {tuning.rank}, but the checkpoint's is {found}; it is not this run's."
        )
    modules = sorted({key.rsplit(".lora_", 1)[0] for key in source.weights})
    config = {"r": tuning.rank, "lora_alpha": tuning.alpha, "target_modules": modules, "bias": "none"}
    return {PREFIX + name: value for name, value in config.items()}
