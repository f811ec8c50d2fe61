"""Requests: what cannot work is refused in a sentence, and what is left out is as in the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engine.requests import EvaluationRequest, GenerationRequest
from engine.settings import EvaluationSettings
from engine.settings_text import explain

PLACES: dict[str, Any] = {"run": "run", "out": "out"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"hybrid": 1.5}, "`hybrid`: Input should be less than or equal to 1."),
        ({"hybrid": -0.1}, "`hybrid`: Input should be greater than or equal to 0."),
        ({"hybrid": float("nan")}, "`hybrid`: Input should be a finite number."),
        ({"against_hybrid": 2.0}, "`against_hybrid`: Input should be less than or equal to 1."),
        ({"num_steps": 0}, "`num_steps`: Input should be greater than or equal to 1."),
        ({"guidance_scale": 0.5}, "`guidance_scale`: Input should be greater than or equal to 1."),
        ({"seed": -1}, "`seed`: Input should be greater than or equal to 0."),
        ({"num_prompts": 0}, "`num_prompts`: Input should be greater than or equal to 1."),
        ({"device": "tpu"}, "`device`: Input should be 'auto', 'cpu' or 'cuda'."),
        ({"strength": 0.5}, "Unknown setting `strength`"),
    ],
)
def test_what_cannot_work_is_said(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EvaluationRequest.model_validate(PLACES | fields)
    said = explain(caught.value)
    assert said.startswith(sentence)
    assert len(said.splitlines()) == 1
    assert not said.endswith("..")


@pytest.mark.parametrize("prompts", [(), ("a red circle", " ")])
def test_prompts_have_words(prompts: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        GenerationRequest.model_validate(PLACES | {"prompts": prompts})


def test_what_is_left_out_is_the_runs() -> None:
    of_run = EvaluationSettings(seed=7, num_steps=9, guidance_scale=2.0)
    assert EvaluationRequest.model_validate(PLACES).evaluation(of_run) == of_run
    asked = EvaluationRequest.model_validate(PLACES | {"seed": 0, "num_steps": 3, "guidance_scale": 1.0})
    evaluation = asked.evaluation(of_run)
    assert (evaluation.seed, evaluation.num_steps, evaluation.guidance_scale) == (0, 3, 1.0)


@pytest.mark.parametrize("against", ["base", "some/run", None])
def test_a_request_is_read_back_from_its_json(against: str | None) -> None:
    request = EvaluationRequest.model_validate(PLACES | {"against": against, "rewards": ("vividness",)})
    assert EvaluationRequest.model_validate_json(request.model_dump_json()) == request
    expected = against if against in ("base", None) else Path(str(against))
    assert request.against == expected
