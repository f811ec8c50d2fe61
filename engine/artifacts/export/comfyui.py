"""A LoRA for ComfyUI's own loader: ``diffusion_model.<layer>.lora_A.weight``, ``….lora_B.weight`` and ``….alpha``.

Layers have the published checkpoint's names (native_names.py), which ComfyUI maps whatever its version.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from engine.artifacts.export.lora_reader import COMFYUI_KEYS, KeyStyle
from engine.artifacts.export.native_names import NATIVE_NAMES
from engine.artifacts.export.published_lora import PublishedLora
from engine.artifacts.export.source import ExportSource


@dataclass(frozen=True)
class ComfyUi(PublishedLora):
    """The adapter alone, for ComfyUI's Load LoRA node."""

    program: str = "ComfyUI"
    families: Collection[str] = frozenset(NATIVE_NAMES)
    names: str = "ComfyUI's"
    keys: KeyStyle = COMFYUI_KEYS
    single_file: str | None = "comfyui_lora.safetensors"

    def how_to_use(self, source: ExportSource) -> str:
        """For the model card."""
        return (
            f"Put `{self.single_file}` into ComfyUI's `models/loras`, and load it with the node *Load LoRA* (its "
            "strength for the model at 1) between the base model and the sampler."
        )
