"""Parts that rest: where each is in each phase, how often it moves, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch
from torch import nn

from engine.artifacts.checkpoint import load_checkpoint
from engine.events import Event, IterationDone, SamplesDrawn
from engine.models.offloading import Offloaded
from engine.run import prepare
from engine.settings import RunSettings
from engine.train import train

GPU = torch.device("cuda", 0)  # only its name is used


class Part(nn.Module):
    """Remembers where it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.places = ["cpu"]

    def to(self, device: torch.device) -> Self:
        self.places.append(device.type)
        return self

    @property
    def place(self) -> str:
        return self.places[-1]


class Model:
    """A pipeline whose calls tell where its parts are."""

    def __init__(self) -> None:
        self.transformer, self.vae, self.text_encoder, self.text_encoder_2 = Part(), Part(), Part(), Part()
        self.lora_targets = ("to_q",)
        self.device = torch.device("cpu")
        encoders = {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2, "text_encoder_3": None}
        self.pipeline = SimpleNamespace(vae=self.vae, components={**encoders, "vae": self.vae, "tokenizer": "words"})

    def places(self, *_: Any) -> tuple[str, str, str, str]:
        encoders = (self.text_encoder.place, self.text_encoder_2.place)
        return (*encoders, self.transformer.place, self.vae.place)

    encode = velocity = decode = release_encoders = places


def test_only_what_works_is_on_the_device() -> None:
    model: Any = Model()
    offloaded = Offloaded(model, GPU)
    assert model.device == GPU
    # Prompts are encoded before the transformer takes its place.
    assert offloaded.encode(["a"]) == ("cuda", "cuda", "cpu", "cpu")
    offloaded.release_encoders()
    offloaded.to(GPU)
    assert model.places() == ("cpu", "cpu", "cuda", "cpu")
    none: Any = None
    for _ in range(3):
        assert offloaded.velocity(none, 0.5, none, none, 1.0) == ("cpu", "cpu", "cuda", "cpu")
    for _ in range(3):
        assert offloaded.decode(none) == ("cpu", "cpu", "cuda", "cuda")
    assert offloaded.velocity(none, 0.5, none, none, 1.0)[-1] == "cpu"
    assert model.vae.places == ["cpu", "cuda", "cpu"], "once a phase, not once a batch"
    assert offloaded.encode(["a"]) == ("cuda", "cuda", "cuda", "cpu")
    assert offloaded.decode(none) == ("cpu", "cpu", "cuda", "cuda")


@pytest.mark.parametrize("caches", [True, False])
def test_a_run_is_the_same_to_the_bit(tiny_settings: RunSettings, tmp_path: Path, caches: bool) -> None:
    ends, told = [], []
    for offload in (False, True):
        compute = tiny_settings.compute.model_dump() | {"offload": offload, "embedding_cache": caches}
        settings = RunSettings.model_validate(tiny_settings.model_dump() | {"iterations": 2, "compute": compute})
        events: list[Event] = []
        train(settings, tmp_path / str(offload), events.append)
        ends.append(load_checkpoint(tmp_path / str(offload) / "checkpoints" / "step-000002").tensors)
        told.append([event.rewards for event in events if isinstance(event, IterationDone | SamplesDrawn)])
    assert told[0] == told[1]
    for file, tensors in ends[0].items():
        assert all(torch.equal(ends[1][file][key], tensor) for key, tensor in tensors.items())


def test_a_run_encodes_before_the_transformer_comes(
    tiny_settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    own: Callable[..., Any] = nn.Module.to

    def to(part: nn.Module, *arguments: Any, **named: Any) -> Any:
        moved.append(type(part).__name__)
        return own(part, *arguments, **named)

    monkeypatch.setattr(nn.Module, "to", to)
    compute = tiny_settings.compute.model_dump() | {"offload": True}
    run = prepare(RunSettings.model_validate(tiny_settings.model_dump() | {"compute": compute}), tmp_path,
                  lambda event: None, None)  # fmt: skip
    assert isinstance(run.model, Offloaded)
    encoders = [place for place, name in enumerate(moved) if "Text" in name or "T5" in name or "CLIP" in name]
    transformer = [place for place, name in enumerate(moved) if "Transformer2D" in name]
    assert encoders and transformer and max(encoders) < min(transformer)
