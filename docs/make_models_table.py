"""Writes docs/models.md: what families of models weigh, the memory and time that tuning takes, and which tests hold it.

Run it by `make docs` after a change of the families or of an estimate; a test fails while the page is out of date. A
published model's transformer is built from its configuration without memory for its weights, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch

from engine.catalogue import MODEL_INFO
from engine.catalogue.gpus import find_gpu
from engine.flops import count_flops
from engine.memory_advice import GIB
from engine.memory_estimate import estimate_memory
from engine.model_size import ModelSize, read_size
from engine.models import model_folder
from engine.settings import ModelName, RunSettings
from engine.tensor_headers import TensorShape
from engine.time_estimate import estimate_time, gpu_speed, is_too_small

PAGE = Path(__file__).parent / "models.md"
# Of what its authors say: a configuration whose weights are further from it is another model's.
_TOLERANCE = 0.05
_GUIDANCE_SCALE = 4.0
INTRODUCTION = """\
# Published models

<!-- Written by `make docs` from docs/make_models_table.py; change that file, not this one. -->

What Palate tunes, how large it is, and how much memory and time that takes. [The guide](guides/models.md) says how to
set each up.

**Memory and time are estimates that were never compared with a GPU**, nor has any of these models but the built-in one
been tuned with its published weights by Palate's own tests.
The configurations stand in `docs/make_models_table.py`, which refuses one whose count is over 5 % from what the authors
say.
"""
EXPLANATION = """\
- **weights**: of the transformer in billions, counted from diffusers' class and the published configuration, without
  Stable Diffusion 3's fixed table of positions (0.2 billion numbers of 3.5 medium's file). Beside it, what the authors
  say, tables included where they do.
- **LoRA, full**: GiB in training, with one image at a time at the size named, by the settings' defaults (a LoRA of rank
  32 of the blocks, AdamW, no KL term) but with `model.precision: bfloat16`, `tuning.gradient_checkpointing: true` and
  guidance above 1, which takes two forwards where it is classifier-free; the built-in model stays in float32. Weights,
  gradients and optimiser state are exact. Activations were within a factor of 2.5 of what small models of all
  families, two sizes each, keep on a CPU without checkpointing.
- **LoRA on nf4**: the same with `model.quantisation: nf4` ([small GPUs](guides/small-gpus.md)).
- **TFLOP**: operations of one forward of one image and a long prompt, matrix products alone, a LoRA of rank 32
  included. The formula equals torch's own count on small models of all families (`tests/engine/test_flops.py`).
- **s on an H100**: seconds of one of MixGRPO's iterations (4 prompts, 12 images each, 25 steps, a window of 4) by the
  settings of the LoRA column, if an H100 reaches 34 % of its peak, as an H200 did; without decoding and scoring.
- **On top** come the autoencoder, the CUDA context, what fragments waste, and rewards that are models. Text encoders
  leave once the prompts are encoded (`compute.embedding_cache`), but until then stand beside the frozen transformer,
  which may take more than a LoRA's training. A run says its own estimate, with its encoders counted.
- **tests** use small models of the true architecture with random weights. All published families are also held by
  `tests/engine/test_memory_estimate.py`, and all but FLUX.1, which has the like in its own file, by
  `tests/engine/models/test_families.py` (images, training and exports against plain diffusers).
- **Left out**: the distilled HunyuanImage 2.1, which Palate refuses, and tuned or later models of a family, which are
  as large as what they came from unless their configuration differs.
"""


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        network: diffusers' class of its transformer.
        stated: weights of the transformer in billions, as its authors say.
        tests: the file that holds most of the family, below tests/engine/models/.
        config: what the published configuration says other than the class's defaults.
        pixels_a_token: pixels a side of what the transformer takes as one token.
    """

    family: ModelName
    title: str
    network: str
    stated: float
    tests: str
    config: Mapping[str, Any] = field(default_factory=dict)
    pixels_a_token: int = 16


_SD3 = ("SD3Transformer2DModel", "test_stable_diffusion_3.py")
_SD3_MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
_NORMS = {"qk_norm": "rms_norm_across_heads"}

MODELS = (
    Published("flux", "FLUX.1 dev, Krea", "FluxTransformer2DModel", 12, "test_flux.py", {"guidance_embeds": True}),
    Published("flux", "FLUX.1 schnell", "FluxTransformer2DModel", 12, "test_flux.py"),
    Published("sd3", "Stable Diffusion 3 medium", _SD3[0], 2, _SD3[1], _SD3_MEDIUM | {"pos_embed_max_size": 192}),
    Published("sd3", "Stable Diffusion 3.5 medium", _SD3[0], 2.5, _SD3[1], _SD3_MEDIUM | {
        "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm",
    }),
    Published("sd3", "Stable Diffusion 3.5 large", _SD3[0], 8.1, _SD3[1], {
        "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
    }),
    Published("chroma", "Chroma1 (HD, Base)", "ChromaTransformer2DModel", 8.9, "test_chroma.py"),
    Published("lumina2", "Lumina-Image 2.0", "Lumina2Transformer2DModel", 2.6, "test_lumina2.py", {
        "cap_feat_dim": 2304,
    }),
    Published("qwen_image", "Qwen-Image", "QwenImageTransformer2DModel", 20, "test_families.py"),
    Published("z_image", "Z-Image (base, Turbo)", "ZImageTransformer2DModel", 6, "test_families.py"),
    Published("sana", "SANA 0.6B", "SanaTransformer2DModel", 0.6, "test_sana.py", {
        "num_layers": 28, "num_attention_heads": 36, "num_cross_attention_heads": 16, "cross_attention_head_dim": 72,
        "cross_attention_dim": 1152,
    }, 32),
    Published("sana", "SANA 1.6B", "SanaTransformer2DModel", 1.6, "test_sana.py", {}, 32),
    Published("sana", "SANA 1.5 1.6B", "SanaTransformer2DModel", 1.6, "test_sana.py", _NORMS, 32),
    Published("sana", "SANA 1.5 4.8B", "SanaTransformer2DModel", 4.8, "test_sana.py", _NORMS | {"num_layers": 60}, 32),
    Published("hunyuan_image", "HunyuanImage 2.1", "HunyuanImageTransformer2DModel", 17, "test_hunyuan_image.py", {
        "text_embed_2_dim": 1472,
    }, 32),
    Published("flux2", "FLUX.2 dev", "Flux2Transformer2DModel", 32, "test_flux2.py"),
    Published("flux2_klein", "FLUX.2 klein 4B", "Flux2Transformer2DModel", 4, "test_flux2.py", {
        "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
        "guidance_embeds": False,
    }),
    Published("flux2_klein", "FLUX.2 klein 9B", "Flux2Transformer2DModel", 9, "test_flux2.py", {
        "num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288,
        "guidance_embeds": False,
    }),
)  # fmt: skip


def page() -> str:
    """The whole page as Markdown."""
    rows = [
        "| `model.name` | model | weights | authors say | image | LoRA on nf4 | LoRA | full | TFLOP | s on an H100 "
        "| tests |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        own_row(),
        *(published_row(model) for model in MODELS),
    ]
    return "\n\n".join(part.strip() for part in (INTRODUCTION, "\n".join(rows), EXPLANATION)) + "\n"


def own_row() -> str:
    """The built-in model's, whose weights are here."""
    settings = run_settings("builtin", "lora")
    size = read_size(model_folder(settings.model), settings)
    return row("builtin", "Built-in", replace(size, encoders=0, autoencoder=0), "–", "`tests/engine/builtin/`")


def published_row(model: Published) -> str:
    """A published model's. Raises ValueError if its configuration gives another number of weights than is said."""
    size = published_size(model)
    in_file = sum(shape.num_elements for shape in size.transformer.values()) / 1e9
    if abs(in_file / model.stated - 1) > _TOLERANCE:
        raise ValueError(f"{model.title} has {in_file:.2f} billion weights by its configuration, not {model.stated}.")
    return row(model.family, model.title, size, f"{model.stated}", f"`tests/engine/models/{model.tests}`")


def published_size(model: Published) -> ModelSize:
    """Its transformer's size; encoders and autoencoder are left out."""
    with torch.device("meta"):
        network = getattr(diffusers, model.network)(**model.config)
    return ModelSize(
        transformer={name: TensorShape("F32", tuple(tensor.shape)) for name, tensor in network.state_dict().items()},
        encoders=0,
        autoencoder=0,
        pixels_a_token=model.pixels_a_token,
        text_tokens=MODEL_INFO[model.family].text_tokens,
        image_size=MODEL_INFO[model.family].image_size,
        head_width=int(network.config.get("attention_head_dim") or 0),
        takes_guidance=bool(network.config.get("guidance_embeds")),
    )


def row(family: ModelName, title: str, size: ModelSize, stated: str, tests: str) -> str:
    """A row of the table."""
    small = is_too_small(size)
    kinds = (run_settings(family, "lora", "nf4"), run_settings(family, "lora"), run_settings(family, "full"))
    estimates = [estimate_memory(size, settings) for settings in kinds]
    memory = " | ".join(f"{estimate.training / GIB:.{2 if small else 0}f}" for estimate in estimates)
    weights = f"{size.num_weights / 1e9:.{4 if small else 2}f}"
    side = MODEL_INFO[family].image_size
    flops = count_flops(size, run_settings(family, "lora")).forward
    work = f"{flops / 1e12:.{4 if small else 1}f} | {seconds(size, family)}"
    return f"| `{family}` | {title} | {weights} | {stated} | {side}×{side} | {memory} | {work} | {tests} |"


def seconds(size: ModelSize, family: ModelName) -> str:
    """Of an iteration of a LoRA on an H100; "–" of a model that is too small for its data sheet to say."""
    settings, gpu = run_settings(family, "lora"), find_gpu("H100")
    assert gpu is not None
    estimate = estimate_time(size, settings, gpu_speed(gpu, settings))
    return "–" if is_too_small(size) else f"{estimate.drawing + estimate.training:.0f}"


def run_settings(family: ModelName, method: str, quantisation: str = "none") -> RunSettings:
    """Settings by which a run of the family would be started; no file is looked for."""
    model = {"name": family} if family == "builtin" else {"name": family, "folder": ".", "precision": "bfloat16"}
    model["quantisation"] = quantisation
    return RunSettings.model_validate({
        "model": model, "rewards": [{"name": "vividness"}], "sampling": {"guidance_scale": _GUIDANCE_SCALE},
        "tuning": {"method": method, "gradient_checkpointing": True},
    })  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}.")
