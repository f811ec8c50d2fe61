"""The flow model: diffusers' `SD3Transformer2DModel`, taught to predict the velocity from latents to noise.

Deviations from Stable Diffusion 3: the adaLN and output projections start at zero (diffusers leaves them random); the
matrices of the blocks are trained with Muon, the rest with AdamW; times are drawn towards high noise at first, where
the arrangement of a scene is decided, and later about the middle, where outlines are.

One more needs a word. Without T5, diffusers' pipeline appends `max_sequence_length` (256 unless told otherwise) zero
tokens to the prompt. They are all alike, so n of them act in attention exactly as one whose logit is raised by log n.
Training keeps one and draws n from 1 to 256, so that a plain call draws what the model learnt, and a call with
`max_sequence_length=1` draws the same for a quarter of the work.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import nn
from torch.nn import functional

from engine.builtin.autoencoder import LATENT_CHANNELS, latent_statistics, load_autoencoder, to_pixels
from engine.builtin.progress import Progress, load_state, save_state
from engine.builtin.prompts import scenes
from engine.builtin.scenes import Scene, caption
from engine.builtin.text import WIDTHS, build_tokenizer, encode, load_text_encoders, tokenize
from engine.models.padding import CountedPaddingProcessor

WIDTH = sum(WIDTHS)
DEPTH = 6
HEAD_WIDTH = 32
MOST_PADDING = 256.0
DROPPED_CAPTIONS = 0.1


@dataclass(frozen=True)
class FlowSettings:
    """How the flow model is trained; times are fractions of noise (0 data, 1 noise)."""

    num_steps: int = 3500
    batch_size: int = 64
    num_scenes: int = 40_000
    muon_rate: float = 2e-3
    adam_rate: float = 1e-3
    arrangement_mean: float = 0.8
    outline_mean: float = 0.2
    outlines_from: float = 0.5
    uniform_times: float = 0.2
    decay_from: float = 0.55
    average: float = 0.999
    seed: int = 0


@dataclass(frozen=True)
class Library:
    """The scenes shown in training, their normalised latents (N, 8, 16, 16), and the mean and deviation taken out."""

    drawn: list[Scene]
    latents: torch.Tensor
    mean: float
    deviation: float


def build_transformer() -> SD3Transformer2DModel:
    """A fresh transformer (width 160, 6 blocks, 5.3 M parameters) whose output is zero."""
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=DEPTH,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=WIDTH // HEAD_WIDTH,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    silent = [model.proj_out, model.norm_out.linear]
    for block in model.transformer_blocks:
        silent += [block.norm1.linear, block.norm1_context.linear]
    for layer in silent:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def build_library(autoencoder: AutoencoderKL, num_scenes: int, seed: int, path: Path) -> Library:
    """Draw training scenes and encode them once; latents are kept in `path` for a later start."""
    stream = scenes(np.random.default_rng([seed, 4]))
    drawn = [next(stream) for _ in range(num_scenes)]
    mean, deviation = latent_statistics(autoencoder)
    state = load_state(path)
    if state is not None and len(state["latents"]) == num_scenes:
        return Library(drawn, state["latents"], mean, deviation)
    parts = []
    progress = Progress("latents", num_scenes, every=8000)
    with torch.inference_mode():
        for start in range(0, num_scenes, 100):
            pixels = to_pixels(drawn[start : start + 100])
            latents = autoencoder.encode(pixels).latent_dist.mode()
            parts.append(((latents - mean) / deviation).half())
            progress.report(start + 99)
    latents = torch.cat(parts)
    save_state(path, {"latents": latents})
    return Library(drawn, latents, mean, deviation)


def draw_times(step: int, settings: FlowSettings, generator: torch.Generator) -> torch.Tensor:
    """Times (N,) in 0..1 of one batch: logit-normal, first high, then about the middle, mixed with uniform ones."""
    num = settings.batch_size
    early = step < settings.outlines_from * settings.num_steps
    mean = settings.arrangement_mean if early else settings.outline_mean
    normal = torch.sigmoid(torch.randn(num, generator=generator) + mean)
    uniform = torch.rand(num, generator=generator)
    return torch.where(torch.rand(num, generator=generator) < settings.uniform_times, uniform, normal)


def rate_at(step: int, settings: FlowSettings) -> float:
    """The learning rate's factor: a short rise, constant, then linear to zero."""
    rise = min(1.0, (step + 1) / 100)
    fall = (settings.num_steps - step) / (settings.num_steps * (1.0 - settings.decay_from))
    return min(rise, fall, 1.0)


class FlowTrainer:
    """The transformer, its optimizers, its running average and one training step."""

    def __init__(self, out: Path, settings: FlowSettings) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.path, self.step = settings, out / "flow.pt", 0
        self.autoencoder = load_autoencoder(out)
        self.library = build_library(self.autoencoder, settings.num_scenes, settings.seed, out / "latents.pt")
        self.tokenizer, self.encoders = build_tokenizer(), load_text_encoders(out)
        self.model = build_transformer()
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.model.set_attn_processor(CountedPaddingProcessor())
        self.optimizers = _build_optimizers(self.model, settings)
        if (state := load_state(self.path)) is not None:
            self._restore(state)
        self.generator = torch.Generator().manual_seed(settings.seed + 7919 * (self.step + 1))
        self.rng = np.random.default_rng([settings.seed, 5, self.step])

    def train(self) -> None:
        """Take the remaining steps, saving every 250."""
        progress = Progress("flow", self.settings.num_steps, self.step)
        for step in range(self.step, self.settings.num_steps):
            loss = self._train_step(step)
            progress.report(step, loss=loss)
            self.step = step + 1
            if self.step % 250 == 0 or self.step == self.settings.num_steps:
                self._save()

    def _train_step(self, step: int) -> float:
        """One batch: loss, gradients, both optimizers, running average."""
        factor = rate_at(step, self.settings)
        loss = self._loss(step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_rate"] * factor
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        keep = min(self.settings.average, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1.0 - keep)
        return loss.item()

    def _loss(self, step: int) -> torch.Tensor:
        """Mean square of the velocity's error on one batch."""
        num = self.settings.batch_size
        chosen = self.rng.integers(len(self.library.drawn), size=num)
        prompts = [caption(self.library.drawn[index], self.rng) for index in chosen]
        prompts = [
            "" if dropped else text
            for text, dropped in zip(prompts, self.rng.random(num) < DROPPED_CAPTIONS, strict=True)
        ]
        latents = self.library.latents[torch.from_numpy(chosen)].float()
        noise = torch.randn(latents.shape, generator=self.generator)
        times = draw_times(step, self.settings, self.generator)
        noisy = torch.lerp(latents, noise, times[:, None, None, None])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            states, pooled = encode(self.encoders, tokenize(self.tokenizer, prompts))
        states = functional.pad(states.float(), (0, 0, 0, 1))  # the zero token
        with torch.autocast("cpu", torch.bfloat16):
            velocity = self.model(
                hidden_states=noisy,
                encoder_hidden_states=states,
                pooled_projections=pooled.float(),
                timestep=times * 1000.0,
                joint_attention_kwargs={"log_count": self._log_count(num)},
                return_dict=False,
            )[0]
        return functional.mse_loss(velocity.float(), noise - latents)

    def _log_count(self, num: int) -> torch.Tensor:
        """Log n of the zero token (B, 1, 1): n = 1 or 256 a quarter of the time each, something between otherwise."""
        share = (2.0 * torch.rand(num, generator=self.generator) - 0.5).clamp(0.0, 1.0)
        return (share * math.log(MOST_PADDING))[:, None, None]

    def _save(self) -> None:
        """Keep everything that going on needs."""
        state = {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "mean": self.library.mean,
            "deviation": self.library.deviation,
        }
        save_state(self.path, state)

    def _restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = int(state["step"])


def _build_optimizers(model: SD3Transformer2DModel, settings: FlowSettings) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of attention and feed-forward, AdamW for everything else."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        in_block = name.startswith("transformer_blocks") and parameter.ndim == 2 and ".norm1" not in name
        (matrices if in_block else rest).append(parameter)
    muon = torch.optim.Muon(
        [{"params": matrices, "base_rate": settings.muon_rate}],
        lr=settings.muon_rate,
        weight_decay=0.01,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(
        [{"params": rest, "base_rate": settings.adam_rate}],
        lr=settings.adam_rate,
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=True,
    )
    return muon, adam
