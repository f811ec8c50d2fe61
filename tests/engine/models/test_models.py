"""The registry of models: which bring weights, and what is said where none are named."""

from __future__ import annotations

import diffusers
import pytest

from engine.catalogue import MODEL_INFO
from engine.models import MODELS, OWN_WEIGHTS, model_folder
from engine.settings import ModelSettings


def test_the_catalogue_knows_which_models_need_a_folder() -> None:
    assert {name for name, info in MODEL_INFO.items() if info.needs_folder} == MODELS.keys() - OWN_WEIGHTS.keys()


def test_the_catalogue_knows_every_familys_pipelines() -> None:
    for name, info in MODEL_INFO.items():
        assert info.pipelines, f"{name} has no pipelines in MODEL_INFO"
        assert all(hasattr(diffusers, pipeline) for pipeline in info.pipelines)


@pytest.mark.parametrize("name", sorted(MODELS.keys() - OWN_WEIGHTS.keys()))
def test_a_model_without_weights_asks_for_a_folder(name: str) -> None:
    with pytest.raises(ValueError, match=f"The model {name} comes without weights; set model.folder"):
        model_folder(ModelSettings.model_validate({"name": name}))
