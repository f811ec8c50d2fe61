"""The autoencoder: 64×64×3 images to 16×16×8 latents and back (diffusers' `AutoencoderKL`, without attention).

Trained on fresh scenes with L1 + squared error + a light KL term, under a cosine learning rate. The whole flow model
stands on it: small shapes must survive the way through, so its reconstructions are checked before anything else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from engine.builtin.checker import check
from engine.builtin.progress import Progress, load_state, save_state
from engine.builtin.prompts import scenes
from engine.builtin.scenes import Scene, caption, render

LATENT_CHANNELS = 8
KL_WEIGHT = 3e-5


def build_autoencoder() -> AutoencoderKL:
    """A fresh autoencoder: factor 4, 8 latent channels, 0.66 M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def to_pixels(drawn: list[Scene]) -> torch.Tensor:
    """Render scenes to float (N, 3, 64, 64) in -1..1."""
    images = np.stack([render(scene) for scene in drawn])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_images(pixels: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Float (N, 3, H, W) in -1..1 to uint8 (N, H, W, 3)."""
    rounded = ((pixels.float().clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)
    return rounded.permute(0, 2, 3, 1).contiguous().numpy()


def train_autoencoder(out: Path, num_steps: int, batch_size: int, learning_rate: float, seed: int) -> AutoencoderKL:
    """Train, or go on with, the autoencoder; its state is kept in `out/autoencoder.pt`."""
    torch.manual_seed(seed)
    model = build_autoencoder()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    path, first = out / "autoencoder.pt", 0
    if (state := load_state(path)) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = int(state["step"])
    stream = scenes(np.random.default_rng([seed, 1, first]))
    progress = Progress("autoencoder", num_steps, first)
    for step in range(first, num_steps):
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = warm * learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / num_steps))
        l1, squared, kl = _losses(model, to_pixels([next(stream) for _ in range(batch_size)]))
        optimizer.zero_grad()
        (l1 + squared + KL_WEIGHT * kl).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        # The images span -1..1: a peak of 2 against the root of the mean square.
        progress.report(step, l1=l1.item(), decibels=10 * math.log10(4 / squared.item()), kl=kl.item())
        if (step + 1) % 250 == 0 or step + 1 == num_steps:
            save_state(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
    return model.eval()


def load_autoencoder(out: Path) -> AutoencoderKL:
    """The autoencoder as last saved in `out`."""
    state = load_state(out / "autoencoder.pt")
    if state is None:
        raise ValueError(f"There is no autoencoder in {out}: run the step 'autoencoder' first.")
    model = build_autoencoder()
    model.load_state_dict(state["model"])
    return model.eval()


@torch.inference_mode()
def reconstruction_share(model: AutoencoderKL, num_scenes: int = 200, seed: int = 11) -> float:
    """The share of real scenes whose reconstruction the checker finds right in everything the caption asks."""
    rng = np.random.default_rng(seed)
    drawn = [scene for scene, _ in zip(_both_sides(rng), range(num_scenes), strict=False)]
    right = 0
    for start in range(0, num_scenes, 50):
        some = drawn[start : start + 50]
        images = to_images(model.decode(model.encode(to_pixels(some)).latent_dist.mode()).sample)
        right += sum(check(image, caption(scene, rng)).correct for image, scene in zip(images, some, strict=True))
    return right / num_scenes


@torch.inference_mode()
def latent_statistics(model: AutoencoderKL, num_scenes: int = 512, seed: int = 12) -> tuple[float, float]:
    """Mean and deviation of training scenes' latents: diffusers' `shift_factor` and 1/`scaling_factor`."""
    stream = scenes(np.random.default_rng(seed))
    latents = model.encode(to_pixels([next(stream) for _ in range(num_scenes)])).latent_dist.mode()
    return float(latents.mean()), float(latents.std())


def _losses(model: AutoencoderKL, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L1, mean square and KL (per latent number) of one batch (N, 3, 64, 64); the convolutions run in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(pixels).latent_dist
        drawn = model.decode(posterior.sample()).sample
    error = drawn.float() - pixels
    kl = 0.5 * (posterior.mean.float().pow(2) + posterior.var.float() - 1.0 - posterior.logvar.float()).mean()
    return error.abs().mean(), error.pow(2).mean(), kl


def _both_sides(rng: np.random.Generator) -> Iterator[Scene]:
    """Scenes of the training and the held-out side by turns."""
    training, held_out = scenes(rng), scenes(rng, held_out=True)
    while True:
        yield next(training)
        yield next(held_out)
