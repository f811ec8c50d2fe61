"""LoRA files for ComfyUI are those with which ComfyUI's own code was seen to draw as diffusers does.

exports/reference.json holds what exports/make_reference.py saw: each file's digest, how many of its tensors ComfyUI
passed over, and how far its model with the file is from diffusers' with the checkpoint's changes. A file that is now
written otherwise has not been seen: run the script again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.artifacts.export.kohya import TRAINERS_ONLY
from engine.artifacts.export.native_names import NATIVE_NAMES
from tests.parity.exports.cases import CASES, FOLDER, FORMATS, digest, written

# Diffusers' Chroma uses a class that diffusers itself calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")

REFERENCE: dict[str, Any] = json.loads((FOLDER / "reference.json").read_text(encoding="utf-8"))
FILES = [(name, form) for name, case in CASES.items() for form in FORMATS if case.class_name in FORMATS[form].families]
ROUNDING = 2e-5  # of the largest output, in float32; the models' own arithmetic differs by as much without a LoRA


def test_every_family_was_tried() -> None:
    assert {case.class_name for case in CASES.values()} == NATIVE_NAMES.keys()
    assert {(name, form) for name, seen in REFERENCE["cases"].items() for form in seen["files"]} == set(FILES)


@pytest.mark.parametrize(("name", "form"), FILES)
def test_the_file_is_the_one_that_comfyui_read(tmp_path: Path, name: str, form: str) -> None:
    assert digest(written(CASES[name], form, tmp_path)) == REFERENCE["cases"][name]["files"][form]["digest"]


@pytest.mark.parametrize(("name", "form"), FILES)
def test_comfyui_draws_with_it_as_diffusers_does(name: str, form: str) -> None:
    case = REFERENCE["cases"][name]
    file = case["files"][form]
    assert case["base"] < ROUNDING
    assert case["change"] > 0.1
    reads_all = not (form == "kohya" and CASES[name].class_name in TRAINERS_ONLY)
    assert (file["passed_over"] == 0) == reads_all
    assert (file["difference"] < ROUNDING) == reads_all
