"""What to change where a run will not fit: as little as is needed, what loses least first, and only what helps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from engine.memory_advice import GIB, changed, fewer_at_once, find_remedy, in_words, lighten
from engine.memory_estimate import estimate_memory
from engine.model_size import ModelSize
from engine.settings import RunSettings
from engine.tensor_headers import TensorShape

WIDTH = 3072


@pytest.fixture
def size() -> ModelSize:
    """A megapixel model with 4.5 billion weights in 40 blocks, encoders of 5 billion, and an autoencoder."""
    layers = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2")
    sides = {"ff.net.0.proj": (4 * WIDTH, WIDTH), "ff.net.2": (WIDTH, 4 * WIDTH)}
    blocks = {
        f"transformer_blocks.{block}.{layer}.weight": TensorShape("F32", sides.get(layer, (WIDTH, WIDTH)))
        for block in range(40) for layer in layers
    }  # fmt: skip
    return ModelSize(
        transformer=blocks, encoders=5_000_000_000, autoencoder=80_000_000, pixels_a_token=16, text_tokens=512,
        image_size=1024, head_width=128, decoder={"decoder.conv_out.weight": TensorShape("F32", (3, 128, 3, 3))},
    )  # fmt: skip


def settings_with(**sections: Any) -> RunSettings:
    return RunSettings.model_validate({"model": {"name": "flux"}, "rewards": [{"name": "vividness"}]} | sections)


HALF = {"name": "flux", "precision": "bfloat16"}


@pytest.mark.parametrize(
    ("sections", "gib", "changes"),
    [
        ({}, 44, ["model.precision to bfloat16"]),
        ({"model": HALF}, 24, ["tuning.gradient_checkpointing to true"]),
        ({"model": HALF}, 20, ["compute.offload to true", "tuning.gradient_checkpointing to true"]),
        ({"model": HALF, "compute": {"embedding_cache": False}, "tuning": {"gradient_checkpointing": True}}, 24,
         ["compute.embedding_cache to true"]),
        ({"model": HALF, "tuning": {"gradient_checkpointing": True}, "compute": {"offload": True}}, 12,
         ["model.quantisation to int8"]),
        ({"model": HALF, "tuning": {"method": "full", "gradient_checkpointing": True}}, 72,
         ["optimiser.name to adamw_8bit"]),
        ({"model": HALF, "tuning": {"method": "full", "gradient_checkpointing": True}}, 24, ["tuning.method to lora"]),
    ],
)  # fmt: skip
def test_no_more_is_changed_than_is_needed(
    size: ModelSize, sections: dict[str, Any], gib: float, changes: list[str]
) -> None:
    settings = settings_with(**sections)
    remedy = find_remedy(size, settings, int(gib * GIB))
    assert [str(change) for change in remedy.changes] == changes and remedy.fits
    assert remedy.peak == estimate_memory(size, changed(settings, remedy.changes)).peak <= 0.85 * gib * GIB
    for left_out in remedy.changes:
        rest = [change for change in remedy.changes if change is not left_out]
        assert estimate_memory(size, changed(settings, rest)).peak > 0.85 * gib * GIB


def test_where_nothing_is_enough_it_is_all_that_helps(size: ModelSize) -> None:
    settings = settings_with(model=HALF)
    remedy = find_remedy(size, settings, 6 * GIB)
    assert not remedy.fits and remedy.peak == 10_000_000_000, "the encoders alone"
    assert [str(change) for change in remedy.changes][-1] == "model.quantisation to int8"


def test_after_memory_ran_out_it_is_a_step_lighter_each_time(size: ModelSize) -> None:
    settings, peaks, named = settings_with(), [], []
    for _ in range(4):
        remedy = lighten(size, settings)
        settings = changed(settings, remedy.changes)
        peaks.append(remedy.peak)
        named.append([str(change) for change in remedy.changes])
        assert remedy.peak == estimate_memory(size, settings).peak
    assert named == [
        ["model.precision to bfloat16"], ["tuning.gradient_checkpointing to true"],
        ["compute.offload to true"], ["model.quantisation to int8"],
    ]  # fmt: skip
    assert all(later <= 0.75 * earlier for earlier, later in pairwise(peaks))


def test_words_say_what_to_change(size: ModelSize) -> None:
    def said(gib: float, **sections: Any) -> str:
        return in_words(size, settings_with(**sections), int(gib * GIB))

    roomy = said(80, model=HALF)
    assert roomy.startswith("About 32.7 GiB of GPU memory with one image at a time: 18.0 GiB while prompts are ")
    assert roomy.endswith("12.7 GiB while an image is decoded; rewards that are models come on top.")
    assert roomy == in_words(size, settings_with(model=HALF))
    assert said(24, model=HALF).endswith(
        " That will hardly fit this GPU's 24.0 GiB: set tuning.gradient_checkpointing to true, for about 18.0 GiB."
    )
    assert "set compute.offload to true and tuning.gradient_checkpointing to true, for about" in said(20, model=HALF)
    full = said(24, model=HALF, tuning={"method": "full", "gradient_checkpointing": True})
    assert "set tuning.method to lora, for" in full and full.endswith("several GPUs with compute.sharding.")
    assert "and as that is not enough (9.3 GiB), lower model.resolution" in said(6, model=HALF)


def test_on_a_cpu_it_is_fewer_images_at_a_time_and_then_checkpointing() -> None:
    settings, named = settings_with(), []
    while changes := fewer_at_once(settings):
        settings = changed(settings, changes)
        named += map(str, changes)
    assert named == [
        "compute.micro_batch to 12", "compute.micro_batch to 3", "compute.micro_batch to 1",
        "tuning.gradient_checkpointing to true",
    ]  # fmt: skip
