"""Embeddings from disk are the model's own, and outlive its encoders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from engine.events import Event, IterationDone
from engine.models import PromptEmbeddings, load_model
from engine.models.embedding_cache import EmbeddingCache, cache_root, fingerprint
from engine.settings import ModelSettings, RunSettings
from engine.train import train

PROMPTS = ["a red circle", "a blue star left of a green square", "a red circle"]
CPU = torch.device("cpu")


def _equal(ours: PromptEmbeddings, theirs: PromptEmbeddings) -> bool:
    return ours.num_padding == theirs.num_padding and all(
        (a is None) == (b is None) and (a or {}).keys() == (b or {}).keys()
        and all(torch.equal(tensor, (b or {})[name]) for name, tensor in (a or {}).items())
        for a, b in ((ours.texts, theirs.texts), (ours.empty, theirs.empty))
    )  # fmt: skip


def _silent(done: int, total: int) -> None:
    pass


def test_what_is_read_is_what_the_model_gives_each_prompt_alone(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    model = load_model(ModelSettings(folder=str(tiny_pipeline_folder)))
    expected = [model.encode([prompt]) for prompt in PROMPTS]
    cache = EmbeddingCache(model, tmp_path / "cache", CPU)
    asked: list[tuple[int, int]] = []
    cache.fill(PROMPTS, lambda done, total: asked.append((done, total)))
    assert asked == [(0, 2), (1, 2)], "each prompt once"
    model.release_encoders()
    read = EmbeddingCache(model, tmp_path / "cache", CPU).encode(PROMPTS)
    assert read.num_padding == expected[0].num_padding > 1
    for name in ("tokens", "pooled"):
        assert torch.equal(read.texts[name], torch.cat([one.texts[name] for one in expected]))
        assert read.empty is not None and expected[0].empty is not None
        assert torch.equal(read.empty[name], expected[0].empty[name])


@pytest.mark.parametrize("damage", [b"", b"\xff" * 100])
def test_a_damaged_file_is_made_anew(tiny_pipeline_folder: Path, tmp_path: Path, damage: bytes) -> None:
    cache = EmbeddingCache(load_model(ModelSettings(folder=str(tiny_pipeline_folder))), tmp_path, CPU)
    before = cache.encode(PROMPTS[:1])
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    assert _equal(cache.encode(PROMPTS[:1]), before)
    assert path.stat().st_size > 100


def test_a_folder_that_cannot_be_written_to_costs_the_cache_alone(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    model = load_model(ModelSettings(folder=str(tiny_pipeline_folder)))
    cache = EmbeddingCache(model, tmp_path / "file" / "cache", CPU)
    cache.fill(PROMPTS, _silent)
    model.release_encoders()
    assert len(cache.encode(PROMPTS).texts["tokens"]) == 3


def test_other_encoders_another_precision_or_device_are_told_apart(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_pipeline_folder, folder)
    settings = ModelSettings()
    same = fingerprint(tiny_pipeline_folder, settings, CPU)
    assert fingerprint(folder, settings, CPU) == same
    weights = folder / "text_encoder" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    names = {
        same, fingerprint(folder, settings, CPU), fingerprint(tiny_pipeline_folder, settings, torch.device("cuda")),
        fingerprint(tiny_pipeline_folder, ModelSettings(precision="bfloat16"), CPU),
    }  # fmt: skip
    assert len(names) == 4


def test_a_run_with_the_cache_is_the_run_without(tiny_settings: RunSettings, tmp_path: Path) -> None:
    """One prompt an iteration, encoded alone either way; the second run reads what the first wrote."""
    grpo = tiny_settings.grpo.model_copy(update={"prompts_per_iteration": 1})
    evaluation = tiny_settings.evaluation.model_copy(update={"num_prompts": 1})
    losses = []
    for name, cached in (("without", False), ("filling", True), ("reading", True)):
        compute = tiny_settings.compute.model_copy(update={"embedding_cache": cached})
        events: list[Event] = []
        changes = {"grpo": grpo, "evaluation": evaluation, "compute": compute, "iterations": 2}
        train(tiny_settings.model_copy(update=changes), tmp_path / name, events.append)
        losses.append([event.loss for event in events if isinstance(event, IterationDone)])
    assert losses[0] == losses[1] == losses[2]
    assert len(list(cache_root().rglob("*.safetensors"))) == 3  # two trained on, one held out
