"""What is found in model folders: pipelines by their index, starts by their headers, and nothing out of the folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.builtin import WEIGHTS
from store.model_library import find_models
from tests.engine.models.hub_folders import COMMIT, put_in_cache


def lora(path: Path) -> None:
    save_file({"a.lora_down.weight": torch.zeros(1, 2), "a.lora_up.weight": torch.zeros(2, 1)}, path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    shutil.copytree(WEIGHTS, root / "deep" / "er" / "whole")
    shutil.copytree(WEIGHTS, root / "half")
    (root / "half" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.copytree(WEIGHTS / "transformer", root / "bare")
    lora(root / "lora.safetensors")
    save_file({"by.its.authors": torch.zeros(1)}, root / "deep" / "one.safetensors")
    (root / "pickle.safetensors").write_bytes(b"PK\x03\x04")
    (root / "strange").mkdir()
    (root / "strange" / "model_index.json").write_text("[")
    shutil.copytree(WEIGHTS, root / ".hidden")
    shutil.copytree(WEIGHTS, root / "1" / "2" / "3" / "4" / "5")
    return root


def test_what_is_found(root: Path) -> None:
    found = find_models([root, root / "absent"])
    assert [(each.name, each.families, bool(each.problem)) for each in found.pipelines] == [
        ("deep/er/whole", ("builtin", "sd3"), False), ("half", ("builtin", "sd3"), True), ("strange", (), True),
    ]  # fmt: skip
    assert "vae/*.safetensors is missing" in found.pipelines[1].problem
    assert found.pipelines[0].num_bytes == sum(path.stat().st_size for path in WEIGHTS.glob("*/*.safetensors"))
    assert [(each.name, each.kind) for each in found.starts] == [
        ("bare", "transformer"), ("deep/er/whole", "transformer"), ("deep/one.safetensors", "file"),
        ("lora.safetensors", "lora"),
    ]  # fmt: skip
    whole = str(root / "deep" / "er" / "whole")
    assert [each.name for each in found.of_family("sd3")] == ["deep/er/whole", "half"]
    assert found.of_family("flux") == []
    of_no_family = ["bare", "deep/one.safetensors", "lora.safetensors"]
    assert [each.name for each in found.starts_for("flux", None)] == of_no_family
    assert [each.name for each in found.starts_for("sd3", whole)] == of_no_family


def test_links_lead_no_further_than_the_folders(root: Path, tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "elsewhere" / "secret")
    lora(tmp_path / "elsewhere" / "secret.safetensors")
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (root / "out.safetensors").symlink_to(tmp_path / "elsewhere" / "secret.safetensors")
    (root / "circle").symlink_to(root)
    before = find_models([root])
    assert not any("secret" in str(each.path) for each in (*before.pipelines, *before.starts))
    both = find_models([root, tmp_path / "elsewhere"])
    assert [each.name for each in both.of_family("sd3")] == ["deep/er/whole", "half", "secret"]


def test_a_hubs_cache_is_looked_through(tmp_path: Path) -> None:
    put_in_cache(tmp_path / "hub", "org/name", WEIGHTS)
    (found,) = find_models([tmp_path / "hub"]).pipelines
    assert found.name == f"models--org--name/snapshots/{COMMIT}"
    assert not found.problem
