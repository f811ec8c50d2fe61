"""What an exported file says of itself: ModelSpec 1.0.1 fields, and how to make it again."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from safetensors import safe_open

from engine.artifacts.export.source import ExportSource
from engine.catalogue import MODEL_INFO


def header(source: ExportSource, kind: str) -> dict[str, str]:
    """Header texts of a file of `kind` ("lora" or "" for whole weights); the same checkpoint gives the same texts."""
    settings, manifest = source.public_settings(), source.manifest
    rewards = " + ".join(reward.key for reward in settings.rewards if reward.weight > 0)
    side = source.settings.model.resolution or _own_resolution(source)
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{source.base_name}/{kind}" if kind else source.base_name,
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": f"{source.base_name}, tuned for {rewards}, {source.step} iterations",
        "modelspec.description": f"Tuned with MixGRPO from rewards ({rewards}) in Palate.",
        "modelspec.author": "Palate",
        "modelspec.date": datetime.fromtimestamp(manifest.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.resolution": f"{side}x{side}",
        "palate.base_model": source.base_name,
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


def _own_resolution(source: ExportSource) -> int:
    """Pixels a side that a pipeline folder draws by default."""
    transformer, vae = (
        json.loads((source.base / part / "config.json").read_text(encoding="utf-8")) for part in ("transformer", "vae")
    )
    if "sample_size" not in transformer:  # FLUX leaves it to the pipeline
        return MODEL_INFO[source.settings.model.name].image_size
    blocks = vae.get("block_out_channels") or vae["encoder_block_out_channels"]  # SANA's
    side: int = transformer["sample_size"] * 2 ** (len(blocks) - 1)
    return side
