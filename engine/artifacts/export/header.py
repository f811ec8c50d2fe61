"""What an exported file says of itself: ModelSpec 1.0.1 fields, and how to make it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from safetensors import safe_open
from torch import Tensor

from engine.artifacts.export.architecture import architecture_id
from engine.artifacts.export.source import ExportSource
from engine.artifacts.tensor_files import tensor_sha256, write_tensors
from engine.catalogue import MODEL_INFO

DIFFUSERS = "https://github.com/huggingface/diffusers"


def write_with_header(
    source: ExportSource,
    path: Path,
    tensors: Mapping[str, Tensor],
    kind: Literal["lora", "whole"],
    *,
    implementation: str = DIFFUSERS,
    more: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file whose header says what it is, with the hash of its tensors, and `more` texts."""
    texts = header(source, kind, implementation) | dict(more or {})
    write_tensors(path, tensors, texts)
    # The hash is of the tensors alone, so writing it into the header leaves it true.
    write_tensors(path, tensors, texts | {"modelspec.hash_sha256": "0x" + tensor_sha256(path)})


def header(source: ExportSource, kind: Literal["lora", "whole"], implementation: str = DIFFUSERS) -> dict[str, str]:
    """Header texts of a file of `kind`, its keys named as in `implementation`; a checkpoint always gives the same."""
    settings, manifest = source.public_settings(), source.manifest
    rewards = " + ".join(reward.key for reward in settings.rewards if reward.weight > 0)
    side = source.settings.model.resolution or own_resolution(source)
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture_id(source.facts) + ("/lora" if kind == "lora" else ""),
        "modelspec.implementation": implementation,
        "modelspec.title": f"{source.base_name}, tuned for {rewards}, {source.step} iterations",
        "modelspec.description": f"Tuned with {source.method} from rewards ({rewards}) in Palate.",
        "modelspec.author": "Palate",
        "modelspec.date": datetime.fromtimestamp(manifest.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.license": source.licence.text,
        "palate.base_model": source.relative_to,
        "palate.base_revision": source.base_revision,
        "palate.step": str(source.step),
        "palate.averaged": str(source.averaged).lower(),
        "palate.seed": str(settings.seed),
        "palate.evaluation_seed": str(settings.evaluation.seed),
        "palate.settings_digest": manifest.settings_digest,
        "palate.settings": json.dumps(settings.model_dump(mode="json"), sort_keys=True),
        "palate.versions": json.dumps(manifest.versions, sort_keys=True),
    }


def read_header(path: Path) -> dict[str, str]:
    """The header texts of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def own_resolution(source: ExportSource) -> int:
    """Pixels a side that the base draws by default: its transformer's size in latents, or else its family's."""
    config = source.base / "vae" / "config.json"
    latents = source.facts.config.get("sample_size")
    if not isinstance(latents, int) or not config.is_file():
        return MODEL_INFO[source.settings.model.name].image_size
    vae = json.loads(config.read_text(encoding="utf-8"))
    blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels")  # SANA's
    if not blocks:
        return MODEL_INFO[source.settings.model.name].image_size
    side: int = latents * 2 ** (len(blocks) - 1)
    return side
