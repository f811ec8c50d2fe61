"""Operations by formula against torch's own count, on small models of every family, two sizes each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engine.flops import Tokens, count_flops
from engine.model_size import read_size
from engine.models import PromptEmbeddings
from engine.models.velocity import prompt_velocity
from engine.run import ForwardCounter
from engine.settings import RunSettings
from engine.tuning import make_trainable
from engine.work import num_passes
from tests.engine.models.families import MEASURED, open_model, other_size

# diffusers' own code, as in tests/engine/models/test_families.py
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]

TUNINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "lora of all layers": {"rank": 4, "layers": "all"},
    "full": {"method": "full"},
}
# Variants that differ from another of their class in nothing that a size changes.
ALIKE = ("SD3.5 medium without T5", "SD3.5 large", "Z-Image Turbo", "HunyuanImage distilled", "FLUX.1 schnell")
ROW = torch.zeros(1, dtype=torch.long)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    @cache
    def saved(name: str, other: bool) -> Path:
        folder = tmp_path_factory.mktemp("models") / "one"
        pipeline = MEASURED[name].make()
        (other_size(pipeline) if other else pipeline).save_pretrained(folder)
        return folder

    return saved


def settings_of(name: str, folder: Path, other: bool, **tuning: Any) -> RunSettings:
    model = MEASURED[name].settings(folder, resolution=MEASURED[name].side * (2 if other else 1))
    return RunSettings.model_validate({
        "model": model.model_dump(), "tuning": tuning, "rewards": [{"name": "vividness"}],
    })  # fmt: skip


def tokens_of(embeddings: PromptEmbeddings, image: int) -> Tokens:
    texts = embeddings.texts
    glyphs = texts["glyphs"].shape[1] if "glyphs" in texts else 0
    return Tokens(image, texts["tokens"].shape[1], glyphs)


@pytest.mark.parametrize(
    ("name", "other"), [(name, False) for name in MEASURED] + [(name, True) for name in MEASURED if name not in ALIKE]
)
def test_operations_are_what_torch_counts(name: str, other: bool, folder_of: Callable[..., Path]) -> None:
    """Equal, forward and backward, for a LoRA of the blocks, one of all layers, and all weights."""
    folder = folder_of(name, other)
    for tuning in TUNINGS.values():
        settings = settings_of(name, folder, other, **tuning)
        model = open_model(MEASURED[name], folder, resolution=settings.model.resolution)
        make_trainable(model, settings.tuning, 0, keep_base=False)
        size = read_size(folder, settings)
        embeddings, tokens = model.encode(['a red circle, "star"']), size.image_tokens(settings)
        flops = count_flops(size, settings, tokens_of(embeddings, tokens))
        # Torch counts the weights' gradient of a depthwise convolution as if it were dense: they are frozen here.
        frozen = [weight for key, weight in model.transformer.named_parameters() if key.endswith("conv_depth.weight")]
        left_out = sum(2 * weight.numel() * tokens for weight in frozen if weight.requires_grad)
        for weight in frozen:
            weight.requires_grad_(False)
        noise = model.noise(torch.Generator().manual_seed(0), 1)
        velocity = prompt_velocity(model, embeddings, 1.0, "float32")
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            output = velocity(noise, 0.5, ROW)
            forward = counter.get_total_flops()
            output.sum().backward()
        assert (flops.forward, flops.training - left_out) == (forward, counter.get_total_flops())


@pytest.mark.parametrize("name", ["SD3", "Qwen-Image", "SANA", "FLUX.1 dev", "HunyuanImage"])
def test_what_checkpointing_repeats(name: str, folder_of: Callable[..., Path]) -> None:
    """The blocks' forward, up to the last product whose result no gradient needs."""
    folder = folder_of(name, True)
    settings = settings_of(name, folder, True, method="full", gradient_checkpointing=True)
    model, size = open_model(MEASURED[name], folder, resolution=settings.model.resolution), read_size(folder, settings)
    embeddings, noise = model.encode(["a red circle"]), model.noise(torch.Generator().manual_seed(0), 1)
    flops = count_flops(size, settings, tokens_of(embeddings, size.image_tokens(settings)))
    counts = []
    for tuning in (settings.tuning.model_copy(update={"gradient_checkpointing": False}), settings.tuning):
        make_trainable(model, tuning, 0, keep_base=False)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            prompt_velocity(model, embeddings, 1.0, "float32")(noise, 0.5, ROW).sum().backward()
        counts.append(counter.get_total_flops())
    assert flops.blocks == pytest.approx(counts[1] - counts[0], rel=0.05)


@pytest.mark.parametrize("name", MEASURED)
def test_a_guided_velocity_takes_the_forwards_that_are_counted(name: str, folder_of: Callable[..., Path]) -> None:
    folder = folder_of(name, False)
    settings, model = settings_of(name, folder, False), open_model(MEASURED[name], folder)
    takes_guidance, counter = read_size(folder, settings).takes_guidance, ForwardCounter(model.transformer)
    embeddings, noise = model.encode(["a red circle"]), model.noise(torch.Generator().manual_seed(0), 1)
    for scale in MEASURED[name].scales:
        with torch.no_grad():
            model.velocity(noise, 0.5, embeddings, ROW, scale)
        assert counter.take() == num_passes(settings, scale, takes_guidance), scale
