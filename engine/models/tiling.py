"""Decoding in overlapping tiles: `model.vae_tile`, for the engine's pipeline and a plain one alike, and its Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.pipeline_folders import pixels_a_latent, read_json

# Of a tile; so much overlaps with the next.
_OVERLAP = 4


@dataclass(frozen=True)
class Tiling:
    """How diffusers' autoencoder is told: arguments of `enable_tiling`, and attributes where it takes none."""

    arguments: Mapping[str, int] = field(default_factory=dict)
    attributes: Mapping[str, int] = field(default_factory=dict)

    def apply(self, vae: Any) -> None:
        """Have an autoencoder decode in tiles from now on."""
        vae.enable_tiling(**self.arguments)
        for name, value in self.attributes.items():
            assert hasattr(vae, name), "diffusers' own attribute"
            setattr(vae, name, value)

    def code(self) -> str:
        """The same as lines of Python about `pipe`."""
        arguments = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        lines = [f"pipe.vae.enable_tiling({arguments})"]
        return "\n".join([*lines, *(f"pipe.vae.{name} = {value}" for name, value in self.attributes.items())]) + "\n"


def _by_attributes(tile: int, pixels: int) -> Tiling:
    return Tiling(attributes={"tile_sample_min_size": tile, "tile_latent_min_size": tile // pixels})


def _by_size(tile: int, _: int) -> Tiling:
    return Tiling({"tile_sample_min_size": tile})


def _by_strides(tile: int, _: int) -> Tiling:
    stride = tile - tile // _OVERLAP
    return Tiling({
        "tile_sample_min_height": tile, "tile_sample_min_width": tile,
        "tile_sample_stride_height": stride, "tile_sample_stride_width": stride,
    })  # fmt: skip


_TILINGS: dict[str, Callable[[int, int], Tiling]] = {
    "AutoencoderKL": _by_attributes,
    "AutoencoderKLFlux2": _by_attributes,
    "AutoencoderKLHunyuanImage": _by_size,
    "AutoencoderKLQwenImage": _by_strides,
    "AutoencoderDC": _by_strides,
}


def tiling_of(folder: Path, tile: int) -> Tiling:
    """How the autoencoder of a pipeline folder decodes in tiles of `tile` pixels a side, a quarter of them overlapping.

    Raises ValueError, saying what to change, if it cannot, or not in tiles of that size.
    """
    config = read_json(folder / "vae" / "config.json")
    kind, pixels = str(config.get("_class_name")), pixels_a_latent(config)
    if kind not in _TILINGS:
        raise ValueError(f"This model's autoencoder ({kind}) decodes whole images only; leave model.vae_tile empty.")
    least = _OVERLAP * pixels
    if tile % least:
        raise ValueError(
            f"model.vae_tile is {tile}, but this model's autoencoder decodes in tiles of a multiple of {least} pixels "
            "a side; choose one of those, or leave it empty."
        )
    return _TILINGS[kind](tile, pixels)
