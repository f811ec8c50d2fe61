"""Decoding in tiles and one by one: each family's autoencoder, against whole images and against plain diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.artifacts.export import export_run
from engine.models.pipelines import open_pipeline
from engine.models.tiling import tiling_of
from engine.settings import RunSettings
from tests.engine.models.families import FAMILIES, PROMPTS, Family, call, difference, draw, open_model
from tests.engine.training import train_in

# diffusers' own code, as in tests/engine/models/test_families.py
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

# One of each kind of autoencoder: AutoencoderKL, its three relatives, and SANA's.
NAMES = ("SD3", "Qwen-Image", "SANA", "HunyuanImage", "FLUX.2")


@pytest.fixture(params=NAMES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def folder(family: Family, tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        family.make().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def decoded(family: Family, folder: Path, **model: Any) -> np.ndarray:
    drawn: Any = open_model(family, folder, **model)
    return drawn.decode(drawn.noise(torch.Generator().manual_seed(0), 2))


def test_a_tiled_image_is_a_plain_pipelines_with_the_same_tiles(family: Family, folder: Path) -> None:
    tile, scale = family.side // 2, family.scales[-1]
    whole = draw(open_model(family, folder), PROMPTS, 2, scale, seed=0)
    tiled = draw(open_model(family, folder, vae_tile=tile), PROMPTS, 2, scale, seed=0)
    assert tiled.shape == whole.shape and difference(tiled, whole) > 0
    pipeline = open_pipeline(folder, torch.float32)
    exec(tiling_of(folder, tile).code(), {"pipe": pipeline})  # as a card's reader does
    assert difference(call(family, pipeline, PROMPTS, 2, scale, seed=0), tiled) <= 1


def test_a_tile_as_large_as_the_image_changes_nothing(family: Family, folder: Path) -> None:
    assert difference(decoded(family, folder, vae_tile=family.side), decoded(family, folder)) == 0


def test_one_by_one_they_are_the_same(family: Family, folder: Path) -> None:
    together: Any = open_model(family, folder, vae_slicing=False)
    assert not together.pipeline.vae.use_slicing
    assert difference(decoded(family, folder, vae_slicing=False), decoded(family, folder)) <= 1


def test_fewer_numbers_are_held_at_a_time(family: Family, folder: Path) -> None:
    """The largest input of a layer, in numbers: half a side is a quarter of them."""

    def largest(**model: Any) -> int:
        loaded: Any = open_model(family, folder, **model)
        sizes: list[int] = []
        for part in loaded.pipeline.vae.decoder.modules():
            part.register_forward_hook(lambda _, inputs, __: sizes.append(max(
                [tensor.numel() for tensor in inputs if isinstance(tensor, torch.Tensor)], default=0)))  # fmt: skip
        loaded.decode(loaded.noise(torch.Generator().manual_seed(0), 2))
        return max(sizes)

    whole = largest()
    assert largest(vae_slicing=False) == 2 * whole
    assert largest(vae_tile=family.side // 2) * 4 == whole


@pytest.mark.parametrize("family", ["SD3"], indirect=True)
def test_an_export_is_checked_and_described_with_its_tiles(
    family: Family, folder: Path, tiny_settings: RunSettings, tmp_path: Path
) -> None:
    model = family.settings(folder, vae_tile=16).model_dump()
    settings = RunSettings.model_validate(tiny_settings.model_dump() | {"iterations": 1, "model": model})
    run = tmp_path / "run"
    train_in(settings, run)
    report = export_run(run, "diffusers", tmp_path / "out")
    # The gallery was drawn in tiles as well: without them the check would fail.
    assert report.max_difference <= 2 and "the gallery's tiles" in report.text
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipe.vae.enable_tiling()\npipe.vae.tile_sample_min_size = 16" in card


def test_what_cannot_be_tiled_is_told(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    config = tmp_path / "vae" / "config.json"
    config.write_text('{"_class_name": "AutoencoderKL", "block_out_channels": [1, 1, 1, 1]}')
    assert tiling_of(tmp_path, 64).attributes == {"tile_sample_min_size": 64, "tile_latent_min_size": 8}
    with pytest.raises(ValueError, match=r"^model\.vae_tile is 48, .* multiple of 32 pixels"):
        tiling_of(tmp_path, 48)
    config.write_text('{"_class_name": "AutoencoderTiny"}')
    with pytest.raises(ValueError, match=r"^This model's autoencoder \(AutoencoderTiny\) decodes whole images only"):
        tiling_of(tmp_path, 64)
