"""Loads exported LoRAs with ComfyUI's own code and draws one step with its own models: reference.json beside this.

It needs a checkout of ComfyUI and an environment that has what it imports besides Palate's own packages:

    pip install einops torchsde psutil av comfy-aimdo comfy-kitchen spandrel
    python tests/parity/exports/make_reference.py PATH_TO_COMFYUI

Each case is a small transformer of diffusers with random weights. They are put into ComfyUI's model of the family, by
ComfyUI's own conversion where it has one, and both are asked for the same velocity. Then `load_lora_for_models`, which
its Load LoRA node calls, gets the exported file, and diffusers' weights get what the checkpoint adds to them.

What is not as published: torchvision and torchaudio, which no transformer here uses, are stood in for by empty modules.
"""

from __future__ import annotations

import importlib.machinery
import json
import logging
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[3]))
from engine.artifacts.export.published_places import place_of
from tests.engine.artifacts.families import family_facts, lora_source, weight_deltas
from tests.parity.exports.cases import ALPHA, CASES, FOLDER, FORMATS, RANK, Case, digest, written

HEIGHT, WIDTH, NUM_WORDS = 8, 12, 7
STRENGTH = 0.1  # of the LoRA's change, so that what flows through keeps its size; the same for both
Velocity = Callable[[Any], Tensor]


class Empty(types.ModuleType):
    """A module of which everything is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Emptied:
    """Finds modules that are imported and not used."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in ("torchvision", "torchaudio"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = Empty(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


import diffusers  # before anything is stood in for

sys.meta_path.append(Emptied())  # type: ignore[arg-type]
sys.path.insert(0, sys.argv[1])
sys.argv = [sys.argv[0], "--cpu"]
import comfy.options

comfy.options.enable_args_parsing()
import comfy.model_detection
import comfy.model_patcher
import comfy.sd
import comfy.supported_models as supported
from comfyui_version import __version__ as comfyui_version


class Warnings(logging.Handler):
    """Remembers what was warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def random_weights(module: torch.nn.Module) -> None:
    """Weights that keep the size of what flows through; norms near 1."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        is_norm = "norm" in name and parameter.ndim == 1 and name.endswith("weight")
        size = 0.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1
        parameter.data = 1 + 0.2 * drawn if is_norm else size * drawn


def packed(x: Tensor) -> Tensor:
    """Latents (N, C, h, w) as tokens of 2×2, channels first."""
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)


def unpacked(tokens: Tensor) -> Tensor:
    n, _, c = tokens.shape
    blocks = tokens.view(n, HEIGHT // 2, WIDTH // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(n, c // 4, HEIGHT, WIDTH)


def positions(height: int, width: int, axes: int = 3) -> Tensor:
    ids = torch.zeros(height, width, axes)
    ids[..., 1], ids[..., 2] = torch.arange(height)[:, None], torch.arange(width)[None]
    return ids.reshape(height * width, axes)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def detected(native: dict[str, Tensor], **changes: Any) -> dict[str, Any]:
    """What ComfyUI takes a state dict for; `changes`: what it has in its code for the published sizes."""
    return dict(comfy.model_detection.detect_unet_config(native, "")) | changes


def converted(transformer: Any) -> dict[str, Tensor]:
    """ComfyUI's own conversion of a diffusers state dict, of which it keeps the tensors."""
    return comfy.model_detection.convert_diffusers_mmdit(copied(transformer), "")


def copied(transformer: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in transformer.state_dict().items()}


def by_places(transformer: Any, case: Case, rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Linear layers by this project's rules of published places, the rest by `rename`: a wrong rule draws otherwise."""
    facts = family_facts(case.class_name, case.config)
    native: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for key, tensor in copied(transformer).items():
        name, _, kind = key.rpartition(".")
        place = place_of(name, facts) if name in facts.layers else None
        if place is None:
            native[rename(key)] = tensor
        else:
            rows = torch.cat(list(reversed(tensor.chunk(2)))) if place.swapped else tensor
            parts.setdefault(f"{place.layer}.{kind}", {})[place.start] = rows
    return native | {key: torch.cat([rows[start] for start in sorted(rows)]) for key, rows in parts.items()}


def replaced(*pairs: tuple[str, str]) -> Callable[[str], str]:
    def rename(key: str) -> str:
        for old, new in pairs:
            key = key.replace(old, new)
        return key

    return rename


_NORMS = {
    "double": (("norm_added_q", "txt_attn.norm.query_norm"), ("norm_added_k", "txt_attn.norm.key_norm"),
               ("norm_q", "img_attn.norm.query_norm"), ("norm_k", "img_attn.norm.key_norm")),
    "single": (("norm_q", "norm.query_norm"), ("norm_k", "norm.key_norm")),
}  # fmt: skip


def flux_norm(key: str) -> str:
    """The FLUX family's norms of queries and keys."""
    kind = "single" if key.startswith("single") else "double"
    blocks = ("single_transformer_blocks", "single_blocks"), ("transformer_blocks", "double_blocks")
    return replaced(*blocks, *((f"attn.{old}", new) for old, new in _NORMS[kind]))(key)


def flux(case: Case, t: Any) -> tuple[Any, dict[str, Any], dict[str, Tensor], Velocity, Velocity]:
    native = converted(t)
    guided = case.config["guidance_embeds"]
    x, words, pooled = drawn(2, 4, HEIGHT, WIDTH), drawn(2, NUM_WORDS, 24), drawn(2, 20)
    time, guidance = torch.tensor([0.3, 0.8]), torch.tensor([3.5, 2.0]) if guided else None

    def plain(m: Any) -> Tensor:
        return unpacked(m(
            hidden_states=packed(x), encoder_hidden_states=words, pooled_projections=pooled, timestep=time,
            img_ids=positions(HEIGHT // 2, WIDTH // 2), txt_ids=torch.zeros(NUM_WORDS, 3), guidance=guidance,
        ).sample)  # fmt: skip

    kind = supported.Flux if guided else supported.FluxSchnell
    return (
        kind, detected(native, out_channels=4), native, lambda m: m(x, time, words, y=pooled, guidance=guidance), plain,
    )  # fmt: skip


def flux2(case: Case, t: Any) -> tuple[Any, dict[str, Any], dict[str, Tensor], Velocity, Velocity]:
    native = by_places(t, case, flux_norm)
    x, words, time = drawn(2, 12, 4, 6), drawn(2, NUM_WORDS, 40), torch.tensor([0.3, 0.8])
    guidance = torch.tensor([3.5, 2.0]) if case.config["guidance_embeds"] else None
    word_ids = torch.zeros(NUM_WORDS, 4)
    word_ids[:, 3] = torch.arange(NUM_WORDS)

    def plain(m: Any) -> Tensor:
        tokens = m(
            hidden_states=x.flatten(2).transpose(1, 2), encoder_hidden_states=words, timestep=time,
            img_ids=positions(4, 6, 4), txt_ids=word_ids, guidance=guidance,
        ).sample  # fmt: skip
        return tokens.transpose(1, 2).reshape(x.shape)

    config = detected(native, out_channels=12)
    return supported.Flux2, config, native, lambda m: m(x, time, words, guidance=guidance), plain


def chroma(case: Case, t: Any) -> tuple[Any, dict[str, Any], dict[str, Tensor], Velocity, Velocity]:
    native = by_places(t, case, flux_norm)
    sizes = case.config
    config = detected(
        native, out_dim=128, hidden_dim=sizes["approximator_hidden_dim"], n_layers=sizes["approximator_layers"]
    )
    x, words, time = drawn(2, 16, HEIGHT, WIDTH), drawn(2, NUM_WORDS, 40), torch.tensor([0.3, 0.8])

    def plain(m: Any) -> Tensor:
        return unpacked(m(
            hidden_states=packed(x), encoder_hidden_states=words, timestep=time,
            img_ids=positions(HEIGHT // 2, WIDTH // 2), txt_ids=torch.zeros(NUM_WORDS, 3),
        ).sample)  # fmt: skip

    return supported.Chroma, config, native, lambda m: m(x, time, words, guidance=torch.zeros(2)), plain


def stable_diffusion_3(case: Case, t: Any) -> tuple[Any, dict[str, Any], dict[str, Tensor], Velocity, Velocity]:
    native = converted(t) | {"pos_embed": t.pos_embed.pos_embed.clone()}
    x, words, pooled = drawn(2, 4, HEIGHT, WIDTH), drawn(2, NUM_WORDS, 40), drawn(2, 24)
    time = torch.tensor([300.0, 800.0])
    return (
        supported.SD3, detected(native), native,
        lambda m: m(x, time, context=words, y=pooled), lambda m: m(x, words, pooled, time).sample,
    )  # fmt: skip


def lumina2(case: Case, t: Any) -> tuple[Any, dict[str, Any], dict[str, Tensor], Velocity, Velocity]:
    native = by_places(t, case, replaced(
        ("attn.norm_q", "attention.q_norm"), ("attn.norm_k", "attention.k_norm"),
        ("time_caption_embed.caption_embedder", "cap_embedder"), ("norm1.norm", "attention_norm1"),
        ("norm2.weight", "attention_norm2.weight"), ("ffn_attention_norm2", "ffn_norm2"),
        ("norm1.weight", "attention_norm1.weight"),
        ("ffn_attention_norm1", "ffn_norm1"), ("attention_attention_norm1", "attention_norm1"),
    ))  # fmt: skip
    sizes = case.config
    config = detected(
        native, n_heads=sizes["num_attention_heads"], n_kv_heads=sizes["num_kv_heads"], in_channels=4,
        axes_dims=[32, 32, 32], axes_lens=[300, 512, 512], rope_theta=10000.0, ffn_dim_multiplier=4.0,
    )  # fmt: skip
    x, words, time = drawn(1, 4, HEIGHT, WIDTH), drawn(1, NUM_WORDS, 40), torch.tensor([0.3])
    mask = torch.ones(1, NUM_WORDS, dtype=torch.bool)
    return (
        supported.Lumina2, config, native, lambda m: -m(x, time, words, num_tokens=NUM_WORDS, attention_mask=None),
        lambda m: m(
            hidden_states=x, timestep=1 - time, encoder_hidden_states=words, encoder_attention_mask=mask
        ).sample,
    )  # fmt: skip


def qwen_image(case: Case, t: Any) -> tuple[Any, dict[str, Any], dict[str, Tensor], Velocity, Velocity]:
    native = copied(t)
    config = detected(
        native, num_attention_heads=case.config["num_attention_heads"], joint_attention_dim=40, out_channels=4
    )
    x, words, time = drawn(2, 4, HEIGHT, WIDTH), drawn(2, NUM_WORDS, 40), torch.tensor([0.3, 0.8])

    def plain(m: Any) -> Tensor:
        return unpacked(m(
            hidden_states=packed(x), encoder_hidden_states=words, encoder_hidden_states_mask=None, timestep=time,
            img_shapes=[[(1, HEIGHT // 2, WIDTH // 2)]] * 2,
        ).sample)  # fmt: skip

    return supported.QwenImage, config, native, lambda m: m(x[:, :, None], time, words)[:, :, 0], plain


def z_image(case: Case, t: Any) -> tuple[Any, dict[str, Any], dict[str, Tensor], Velocity, Velocity]:
    native = converted(t)
    config = detected(
        native, in_channels=4, n_heads=case.config["n_heads"], n_kv_heads=case.config["n_kv_heads"],
        axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512], rope_theta=256.0, ffn_dim_multiplier=8 / 3,
        z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32,
    )  # fmt: skip
    x, words, time = drawn(1, 4, HEIGHT, WIDTH), drawn(1, NUM_WORDS, 40), torch.tensor([0.3])
    return (
        supported.ZImage, config, native, lambda m: -m(x, time, words, num_tokens=NUM_WORDS, attention_mask=None),
        lambda m: m([x[0][:, None]], 1 - time, [words[0]]).sample[0][:, 0][None],
    )  # fmt: skip


def hunyuan_image(case: Case, t: Any) -> tuple[Any, dict[str, Any], dict[str, Tensor], Velocity, Velocity]:
    rest = replaced(
        ("context_embedder.token_refiner.refiner_blocks", "txt_in.individual_token_refiner.blocks"),
        ("context_embedder_2.norm", "byt5_in.layernorm"), ("x_embedder.proj", "img_in.proj"),
    )  # fmt: skip
    native = by_places(t, case, lambda key: rest(flux_norm(key)))
    x, words, glyphs = drawn(1, 8, 4, 6), drawn(1, NUM_WORDS, 40), drawn(1, 5, 1472)
    time, later = torch.tensor([300.0]), torch.tensor([100.0])
    distilled = case.config["use_meanflow"]
    guidance = torch.tensor([3.5]) if distilled else None
    sigmas = {"sample_sigmas": torch.tensor([1.0, 0.3, 0.1, 0.0]), "sigmas": torch.tensor([0.3])}
    return (
        supported.HunyuanImage21, detected(native, axes_dim=[64, 64]), native,
        lambda m: m(x, time, words, guidance=guidance, txt_byt5=glyphs, transformer_options=sigmas),
        lambda m: m(
            hidden_states=x, timestep=time, timestep_r=later if distilled else None, encoder_hidden_states=words,
            encoder_attention_mask=torch.ones(1, NUM_WORDS), encoder_hidden_states_2=glyphs,
            encoder_attention_mask_2=torch.ones(1, 5), guidance=guidance * 1000 if guidance is not None else None,
        ).sample,
    )  # fmt: skip


FAMILIES: dict[str, Callable[[Case, Any], tuple[Any, dict[str, Any], dict[str, Tensor], Velocity, Velocity]]] = {
    "FluxTransformer2DModel": flux,
    "Flux2Transformer2DModel": flux2,
    "ChromaTransformer2DModel": chroma,
    "SD3Transformer2DModel": stable_diffusion_3,
    "Lumina2Transformer2DModel": lumina2,
    "QwenImageTransformer2DModel": qwen_image,
    "ZImageTransformer2DModel": z_image,
    "HunyuanImageTransformer2DModel": hunyuan_image,
}


def comfyui_model(kind: Any, config: dict[str, Any], native: dict[str, Tensor], warnings: Warnings) -> Any:
    made = kind(dict(config))
    made.set_inference_dtype(torch.float32, None)
    model = made.get_model(dict(native), "", device=torch.device("cpu"))
    warnings.lines.clear()
    model.load_model_weights({name: tensor.clone() for name, tensor in native.items()}, "")
    if warnings.lines:
        raise SystemExit(f"ComfyUI does not read the base whole: {warnings.lines}")
    return model


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest wanted."""
    return float(f"{((found - wanted).abs().max() / wanted.abs().max()).item():.1e}")


@torch.no_grad()
def seen(name: str, case: Case, warnings: Warnings) -> dict[str, Any]:
    transformer: Any = getattr(diffusers, case.class_name)(**case.config).eval()
    random_weights(transformer)
    kind, config, native, comfyui, plain = FAMILIES[case.class_name](case, transformer)
    base = plain(transformer)
    before = apart(comfyui(comfyui_model(kind, config, native, warnings).diffusion_model), base)
    source = lora_source(family_facts(case.class_name, case.config), Path(), RANK, ALPHA)
    for layer, delta in weight_deltas(source).items():
        transformer.get_submodule(layer).weight.add_(delta, alpha=STRENGTH / delta.shape[1] ** 0.5)
    tuned = plain(transformer)
    files = {}
    for form in FORMATS:
        if case.class_name not in FORMATS[form].families:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = written(case, form, Path(folder))
            tensors, sha256 = comfy.utils.load_torch_file(str(path)), digest(path)
        for key in tensors:
            if key.endswith((".lora_A.weight", ".lora_down.weight")):
                tensors[key] = tensors[key] * (STRENGTH / tensors[key].shape[1] ** 0.5)
        model = comfyui_model(kind, config, native, warnings)
        cpu = torch.device("cpu")
        patcher = comfy.model_patcher.ModelPatcher(model, cpu, cpu)
        patched, _ = comfy.sd.load_lora_for_models(patcher, None, tensors, 1.0, 0.0)
        patched.patch_model(device_to=cpu)
        passed_over = len([line for line in warnings.lines if "not loaded" in line.lower()])
        difference = apart(comfyui(patched.model.diffusion_model), tuned)
        files[form] = {"digest": sha256, "passed_over": passed_over, "difference": difference}
    result = {"base": before, "change": apart(base, tuned), "files": files}
    sys.stdout.write(f"{name} {result}\n")
    return result


def main() -> None:
    logging.getLogger().addHandler(warnings := Warnings())
    cases = {name: seen(name, case, warnings) for name, case in CASES.items()}
    versions = {"comfyui": comfyui_version, "diffusers": diffusers.__version__, "torch": torch.__version__}
    text = json.dumps({"versions": versions, "cases": cases}, indent=1)
    (FOLDER / "reference.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
