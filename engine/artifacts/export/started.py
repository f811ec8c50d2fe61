"""The base of a run that was started from other weights, as a plain pipeline folder to check an export against."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.artifacts.export.source import ExportSource
from engine.models import load_model

_PART = "transformer"


def with_started_base(source: ExportSource, folder: Path) -> ExportSource:
    """The same source, its base with the transformer that the run was started from; itself, if that is the base's own.

    What is equal is linked to, and the transformer written whole in float32.
    """
    model = source.settings.model
    if model.start_from is None:
        return source
    folder.mkdir()
    for path in source.base.iterdir():
        if path.name != _PART:
            (folder / path.name).symlink_to(path.resolve())
    transformer: Any = load_model(model.model_copy(update={"precision": "float32"})).transformer
    transformer.save_pretrained(folder / _PART)
    return replace(source, base=folder)


def how_to_start(source: ExportSource, *, is_adapter: bool) -> str:
    """What a reader of the model card must do before the adapter fits; nothing to say of whole weights."""
    if source.settings.model.start_from is None or not is_adapter:
        return ""
    return (
        f"This adapter is relative to {source.relative_to}. Give the base model that start first (of a LoRA: "
        "`pipe.load_lora_weights(…)`, `pipe.fuse_lora()`, `pipe.unload_lora_weights()`; of a transformer: "
        "`transformer=…` when the pipeline is loaded); without it the images differ.\n\n"
    )
