"""What HunyuanImage alone has: a second text for words in quotes, guiders, and a distilled variant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanImagePipeline
from safetensors.torch import save_file

from engine.models.hunyuan_image import HunyuanImage
from engine.models.plain_calls import lora_code, set_up_plainly, setup_code
from engine.sampling.rollout import sample_ode
from tests.engine.models.tiny_hunyuan_image import hunyuan_image

QUOTED = ['a red circle above "left star"', "a blue star", "the 'large' square of \"white\" on a green square"]
ROW = torch.zeros(1, dtype=torch.long)


@pytest.fixture
def pipeline() -> HunyuanImagePipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hunyuan_image()


def final_latents(
    pipeline: HunyuanImagePipeline, prompts: list[str], num_steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the plain call, and of the engine at the guiders' own scale, 4."""
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompts, num_inference_steps=num_steps, height=64, width=64, generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).images  # fmt: skip
    model = HunyuanImage(pipeline, 64)
    embeddings, rows = model.encode(prompts), torch.arange(len(prompts))
    drawn = sample_ode(
        lambda x, sigma, rows: model.velocity(x, sigma, embeddings, rows, 4.0).detach(),
        model.noise(torch.Generator().manual_seed(7), len(prompts)), rows, tuple(model.sigmas(num_steps).tolist()),
        len(prompts),
    )  # fmt: skip
    return expected, drawn


@pytest.mark.parametrize("prompts", [QUOTED, QUOTED[1:2]], ids=["quoted", "unquoted"])
def test_its_first_steps_are_those_of_the_published_guiders(pipeline: HunyuanImagePipeline, prompts: list[str]) -> None:
    """Up to the sixth step these are plain; a batch with a quotation has a guider of its own."""
    expected, drawn = final_latents(pipeline, prompts, 6)
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=1e-4)


def test_later_steps_are_those_of_plain_guidance(pipeline: HunyuanImagePipeline) -> None:
    published, drawn = final_latents(pipeline, QUOTED[1:2], 9)
    assert (published - drawn).abs().max() > 1e-2, "the projected guidance of later steps is another"
    set_up_plainly("hunyuan_image", pipeline, 4.0)
    expected, drawn = final_latents(pipeline, QUOTED[1:2], 9)
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=1e-4)


def test_words_in_quotes_are_encoded_by_themselves(pipeline: HunyuanImagePipeline) -> None:
    model = HunyuanImage(pipeline, 64)
    embeddings = model.encode(QUOTED)
    lengths = embeddings.texts["glyph_mask"].sum(dim=1).tolist()
    assert lengths == [len('Text "left star". ') + 1, 0, len('Text "large". Text "white". ') + 1]
    assert embeddings.texts["glyphs"].shape == (3, max(lengths), 16)
    assert embeddings.empty is not None and embeddings.empty["glyphs"].shape == (1, 1, 16)
    noise = model.noise(torch.Generator().manual_seed(0), 1)
    silent = type(embeddings)(embeddings.texts | {"glyph_mask": torch.zeros_like(embeddings.texts["glyph_mask"])})
    heard, unheard = (model.velocity(noise, 0.8, texts, ROW, 1.0).detach() for texts in (embeddings, silent))
    assert (heard - unheard).abs().max() > 1e-4


def test_the_distilled_takes_its_guidance_as_an_input() -> None:
    pipeline = hunyuan_image(distilled=True)
    set_up_plainly("hunyuan_image", pipeline, 4.0)
    assert pipeline.guider is None and pipeline.ocr_guider is None
    model = HunyuanImage(pipeline, 64)
    embeddings, noise = model.encode(["a red circle"]), model.noise(torch.Generator().manual_seed(0), 1)
    assert embeddings.empty is None
    weak, strong = (model.velocity(noise, 0.8, embeddings, ROW, scale).detach() for scale in (1.0, 4.0))
    assert (weak - strong).abs().max() > 1e-4


def test_mean_velocities_are_refused() -> None:
    with pytest.raises(ValueError, match="predicts the mean velocity of a whole step"):
        HunyuanImage(hunyuan_image(distilled=True, use_meanflow=True), 64)


def test_a_resolution_that_holds_no_whole_latents_is_refused(pipeline: HunyuanImagePipeline) -> None:
    assert HunyuanImage(pipeline).noise(torch.Generator(), 1).shape == (1, 4, 64, 64)
    pipeline.vae_scale_factor = 32
    with pytest.raises(ValueError, match=r"model\.resolution is 720, but this model draws multiples of 32 pixels"):
        HunyuanImage(pipeline, 720)


def test_a_card_names_the_plain_guider_where_there_is_one(pipeline: HunyuanImagePipeline, tmp_path: Path) -> None:
    pipeline.transformer.save_pretrained(tmp_path / "base" / "transformer")
    hunyuan_image(distilled=True).transformer.save_pretrained(tmp_path / "distilled" / "transformer")
    assert "ClassifierFreeGuidance(guidance_scale=3.5)" in setup_code("hunyuan_image", tmp_path / "base", 3.5)
    assert setup_code("hunyuan_image", tmp_path / "distilled", 3.5) == ""


def test_a_card_loads_a_lora_at_its_own_scale(
    pipeline: HunyuanImagePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "transformer_blocks.0.attn.to_q"
    layer = pipeline.transformer.get_submodule(name)
    config = {"r": 4, "lora_alpha": 12.0, "target_modules": [name], "bias": "none"}
    save_file(
        {
            f"transformer.{name}.lora_A.weight": torch.ones(4, layer.in_features),
            f"transformer.{name}.lora_B.weight": torch.ones(layer.out_features, 4),
        },
        tmp_path / "lora.safetensors",
        {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})},
    )
    monkeypatch.chdir(tmp_path)
    exec(lora_code("hunyuan_image", "lora.safetensors"), {"pipe": pipeline})
    assert pipeline.transformer.get_submodule(name).scaling == {"default_0": 3.0}
