"""Where weights come from: folders, the hub's cache on disk without a network, and what is said where they do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from pydantic import ValidationError

from engine import hub as hub_module
from engine.models import base_in_words, load_model, model_folder, pinned
from engine.models.pipelines import open_pipeline
from engine.pinning import for_ranks, pin
from engine.settings import ModelSettings, RunSettings
from engine.settings_text import read_settings
from tests.engine.models.hub_folders import COMMIT, put_in_cache

OTHER = "f" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize(
    "hub_id",
    ["tiny", "a/b/c", "../etc/passwd", "/etc", "a/..", "a/b..c", "a/-b", "a/b-", "a b/c", "a/b\n", "a/--b", "", "./b"],
)
def test_what_is_no_hub_id(hub_id: str) -> None:
    with pytest.raises(ValidationError):
        ModelSettings(hub_id=hub_id)


@pytest.mark.parametrize("revision", ["../main", "/main", "a..b", "main/", "a b", "", "x" * 101])
def test_what_is_no_revision(revision: str) -> None:
    with pytest.raises(ValidationError):
        ModelSettings(hub_id="org/name", revision=revision)


def test_one_source_only() -> None:
    with pytest.raises(ValidationError, match="two places for one model"):
        ModelSettings(folder="x", hub_id="org/name")
    with pytest.raises(ValidationError, match="revision belongs to hub_id"):
        ModelSettings(revision="main")
    hub = ModelSettings(hub_id="black-forest-labs/FLUX.1-dev", revision="refs/pr/3")
    assert hub.hub_id == "black-forest-labs/FLUX.1-dev"


def test_a_hub_model_is_pinned_and_loaded_without_a_network(cache: Path, tiny_pipeline_folder: Path) -> None:
    snapshot = put_in_cache(cache, "org/tiny", tiny_pipeline_folder)
    model = pinned(ModelSettings(hub_id="org/tiny"))
    assert model.revision == COMMIT
    assert model_folder(model) == snapshot
    ours, theirs = (load_model(m).transformer.state_dict() for m in (model, ModelSettings(folder=str(snapshot))))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert base_in_words(model) == f"org/tiny at {COMMIT}"


def test_a_branch_may_move_but_a_pinned_run_does_not(cache: Path, tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    put_in_cache(cache, "org/tiny", tiny_pipeline_folder)
    settings = RunSettings(model=ModelSettings(hub_id="org/tiny"))
    first = pin(settings, [])
    assert first.model.revision == COMMIT
    put_in_cache(cache, "org/tiny", tiny_pipeline_folder, commit=OTHER)
    assert pin(settings, []).model.revision == OTHER
    (tmp_path / "settings.yaml").write_text(first.to_yaml())
    assert pin(settings, [tmp_path / "nothing", tmp_path]).model.revision == COMMIT
    assert read_settings(for_ranks(first, tmp_path / "asked.yaml", tmp_path / "ranks")) == first


def test_settings_without_a_hub_are_left_alone(tiny_pipeline_folder: Path) -> None:
    settings = RunSettings(model=ModelSettings(folder=str(tiny_pipeline_folder)))
    assert pin(settings, []) is settings
    assert base_in_words(settings.model) == tiny_pipeline_folder.name


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_offline_and_not_here(cache: Path, revision: str | None) -> None:
    with pytest.raises(ValueError, match=r"org/tiny.* is not whole on this machine, and the hub cannot be reached"):
        model_folder(ModelSettings(hub_id="org/tiny", revision=revision))


def test_half_a_download_is_not_loaded(cache: Path, tiny_pipeline_folder: Path) -> None:
    snapshot = put_in_cache(cache, "org/tiny", tiny_pipeline_folder)
    next((snapshot / "transformer").glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"is not whole on this machine|holds no transformer/\*\.safetensors"):
        model_folder(ModelSettings(hub_id="org/tiny"))


def test_a_hub_model_is_looked_up_before_a_launch(cache: Path, tiny_pipeline_folder: Path) -> None:
    snapshot = put_in_cache(cache, "org/tiny", tiny_pipeline_folder)
    assert hub_module.look_up("org/tiny", None, "sd3") == COMMIT
    with pytest.raises(ValueError, match="org/tiny holds a StableDiffusion3Pipeline, but flux needs a FluxPipeline"):
        hub_module.look_up("org/tiny", "main", "flux")
    assert hub_module.cached_folder("org/tiny", None) == hub_module.cached_folder("org/tiny", COMMIT) == snapshot
    next((snapshot / "transformer").glob("*.safetensors")).unlink()
    assert hub_module.cached_folder("org/tiny", None) is None
    assert hub_module.cached_folder("org/other", None) is None


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (GatedRepoError, "accept its terms on https://huggingface.co/org/tiny, then set HF_TOKEN"),
        (RepositoryNotFoundError, "The hub knows no model org/tiny, or it is private"),
        (RevisionNotFoundError, "org/tiny has no revision v9"),
    ],
)
def test_the_hubs_refusals_in_sentences(monkeypatch: pytest.MonkeyPatch, error: Any, says: str) -> None:
    def refuse(*_: object, **__: object) -> str:
        response = httpx2.Response(403, request=httpx2.Request("HEAD", "https://huggingface.co"))
        raise error("refused", response=response)

    monkeypatch.setattr(hub_module, "hf_hub_download", refuse)
    with pytest.raises(ValueError, match=says) as caught:
        pinned(ModelSettings(hub_id="org/tiny", revision="v9"))
    assert "\n" not in str(caught.value)


def test_only_what_a_pipeline_is_made_of_is_downloaded(
    cache: Path, tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository with a pickle, code, a second copy of all weights, and parts that no pipeline names."""
    snapshot = put_in_cache(cache, "org/tiny", tiny_pipeline_folder)
    whole = snapshot.parent.parent / "whole"
    shutil.move(snapshot, whole)
    for extra in ("flux1-dev.safetensors", "transformer/x.bin", "transformer/code.py", "other/x.safetensors"):
        (whole / extra).parent.mkdir(exist_ok=True)
        (whole / extra).write_bytes(b"")
    (whole / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")
    snapshot.mkdir()
    shutil.copy(whole / "model_index.json", snapshot)

    def download(hub_id: str, *, revision: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        names = [path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()]
        for name in huggingface_hub.utils.filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (snapshot / name).parent.mkdir(exist_ok=True)
            shutil.copy(whole / name, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(hub_module, "snapshot_download", download)
    load_model(ModelSettings(hub_id="org/tiny"))
    there = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    assert there == {
        path.relative_to(tiny_pipeline_folder).as_posix() for path in tiny_pipeline_folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_weights_that_are_cut_short(tiny_pipeline_folder: Path, tmp_path: Path, part: str) -> None:
    folder = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "copy"))
    weights = next((folder / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{weights.name} is not whole: it ends before its tensors do"):
        model_folder(ModelSettings(folder=str(folder)))
    weights.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=rf"{weights.name} is no safetensors file"):
        model_folder(ModelSettings(folder=str(folder)))


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
@pytest.mark.parametrize("shards", ["10GB", "20KB"])
def test_weights_of_a_variant_are_not_read(
    tiny_pipeline_folder: Path, tmp_path: Path, variant: str, shards: str
) -> None:
    pipeline = open_pipeline(tiny_pipeline_folder, torch.float16)
    pipeline.save_pretrained(tmp_path / "alone", variant=variant, max_shard_size=shards)
    with pytest.raises(ValueError, match=r"/\*\.safetensors is missing"):
        model_folder(ModelSettings(folder=str(tmp_path / "alone")))
    both = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "both"))
    shutil.copytree(tmp_path / "alone", both, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*config.json"))
    read, plain = (load_model(ModelSettings(folder=str(folder))) for folder in (both, tiny_pipeline_folder))
    state = plain.transformer.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in read.transformer.state_dict().items())


@pytest.mark.parametrize("absent", ["tokenizer", "text_encoder_2", "tokenizer_3", "vae"])
def test_a_part_that_is_missing_on_purpose_but_needed(tiny_pipeline_folder: Path, tmp_path: Path, absent: str) -> None:
    folder = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "copy"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {absent: [None, None]}))
    with pytest.raises(ValueError, match=rf"has no {absent} \(model_index\.json says null\)"):
        model_folder(ModelSettings(folder=str(folder)))
    without_t5 = {"text_encoder_3": [None, None], "tokenizer_3": [None, None], "image_encoder": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index | without_t5))
    model_folder(ModelSettings(folder=str(folder)))
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"scheduler_config\.json is not valid JSON"):
        model_folder(ModelSettings(folder=str(folder)))


def test_another_familys_pipeline(tiny_pipeline_folder: Path, tiny_flux_folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="holds a FluxPipeline, but builtin needs a StableDiffusion3Pipeline; set"):
        model_folder(ModelSettings(folder=str(tiny_flux_folders["dev"])))
    with pytest.raises(ValueError, match=r"needs a FluxPipeline; set model\.name to sd3"):
        model_folder(ModelSettings(name="flux", folder=str(tiny_pipeline_folder)))


def test_a_folder_that_is_not_whole(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "copy"))
    index = {"metadata": {}, "weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model-00001-of-00002.safetensors is missing"):
        model_folder(ModelSettings(folder=str(folder)))
    index["weight_map"] = {"a": "../../secret.safetensors"}
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="names files outside its folder"):
        model_folder(ModelSettings(folder=str(folder)))
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(ValueError, match="not what diffusers writes there"):
        model_folder(ModelSettings(folder=str(folder)))
