"""The script that makes the weights, taken through all its steps in miniature: what it writes is a pipeline."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from engine.builtin import pretrain


def run_step(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["pretrain", *arguments])
    pretrain.main()


def test_every_step_from_nothing_to_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, folder = str(tmp_path / "states"), tmp_path / "weights"
    with torch.random.fork_rng(devices=[]):
        run_step(monkeypatch, "autoencoder", "--out", out, "--steps", "2", "--batch", "2")
        run_step(monkeypatch, "text", "--out", out, "--steps", "2", "--batch", "4")
        run_step(monkeypatch, "flow", "--out", out, "--steps", "2", "--batch", "4", "--scenes", "100")
        # Asked for more steps, it goes on from the second.
        run_step(monkeypatch, "flow", "--out", out, "--steps", "3", "--batch", "4", "--scenes", "100")
    state = torch.load(Path(out) / "flow.pt", weights_only=True)
    assert state["step"] == 3
    assert state["model"]["proj_out.weight"].abs().max() > 0  # it began at zero, so it has learnt something

    run_step(monkeypatch, "export", "--out", out, "--to", str(folder))
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float32)
    image = pipeline("a red circle", num_inference_steps=2, max_sequence_length=1, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert np.isfinite(image).all()


@pytest.mark.parametrize(("step", "words"), [("flow", "no autoencoder"), ("export", "no flow model")])
def test_steps_out_of_order_are_refused(
    step: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=words):
        run_step(monkeypatch, step, "--out", str(tmp_path), "--to", str(tmp_path / "weights"))
