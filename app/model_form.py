"""The model of a new run as form fields: its weights, what they start from, resolution and precision."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import streamlit as st

from app import words
from app.connection import config, database
from app.field_shapes import describe
from app.forms import keep_in_address, place_of, with_values
from engine.catalogue import MODEL_INFO, ModelInfo
from engine.family_defaults import for_family, is_distilled
from engine.hub import cached_folder
from engine.settings import ModelName, ModelSettings, RunSettings
from engine.settings.model import HUB_ID, REVISION
from engine.settings_text import SettingsError, parse_settings
from store.model_library import FoundStart, ModelLibrary, find_models
from store.presence import list_workers

FOLDER, HUB, OWN = "folder", "hub", "own"
_PLACES = {FOLDER: "A folder here", HUB: "The model hub", OWN: "Palate's own"}
_KINDS = {"lora": "LoRA", "transformer": "Transformer", "file": "File"}
_OWN_START = "The model's own weights"


@st.cache_data(show_spinner=False, ttl=10, max_entries=4)
def library(roots: Sequence[Path]) -> ModelLibrary:
    """What lies in the model folders, looked through anew every few seconds."""
    return find_models(roots)


def choose_family(usual: ModelName) -> ModelName:
    """The family of models; with what it is, weighs, and may be used for."""
    names = list(MODEL_INFO)
    chosen = st.selectbox("Model", names, place_of("model", names, usual), key="model-choice",
                          format_func=lambda name: MODEL_INFO[name].title,
                          on_change=keep_in_address, args=("model", "model-choice"))
    info = MODEL_INFO[chosen]
    st.caption(f"{info.help} {info.weights}. Licence: {info.licence}.")
    return chosen


def draw_model(start: RunSettings, family: ModelName, key: str) -> tuple[RunSettings, str]:
    """The model's fields; returns the start with them and the family's defaults, and a key for the fields that follow.

    Raises SettingsError while no weights are chosen.
    """
    given = start.model if start.model.name == family else ModelSettings(name=family)
    with st.container(border=MODEL_INFO[family].needs_folder):
        weights = _draw_weights(given, family, key)
        is_other = start.model.name != family
        distilled = is_other and _is_distilled(weights, family)
        if is_other:
            start = suited(start, family, distilled=distilled)
            # Fields keep what was typed as long as their keys last, and another family has other defaults.
            key = f"{key}-{family}{'-distilled' if distilled else ''}"
        details = _draw_details(start.model, given, weights, key) if MODEL_INFO[family].needs_folder else {}
        if details:
            st.caption(_further_words(start))
    values = {f"model.{name}": value for name, value in (weights | details).items()}
    return parse_settings(with_values(start, values)), key


def suited(start: RunSettings, family: ModelName, *, distilled: bool = False) -> RunSettings:
    """The start, with the defaults of another family than its own; in half precision where a worker has a GPU."""
    if start.model.name == family:
        return start
    return for_family(start, family, distilled=distilled, precision="bfloat16" if _has_gpu() else "float32")


def _draw_weights(given: ModelSettings, family: ModelName, key: str) -> dict[str, Any]:
    """Where the weights are: folder, hub_id and revision."""
    info = MODEL_INFO[family]
    places = [OWN] if not info.needs_folder else []
    places += [FOLDER] if info.needs_folder or given.folder else []
    places += [HUB] if (info.needs_folder and config().hub_models) or given.hub_id else []
    if places == [OWN]:
        return {"folder": None, "hub_id": None, "revision": None}
    usual = HUB if given.hub_id else FOLDER if given.folder else places[0]
    name = f"{key}-{family}-weights"
    place = st.radio("Weights", places, place_of("weights", places, usual), horizontal=True, key=name,
                     format_func=lambda each: _PLACES[each], on_change=keep_in_address, args=("weights", name))
    folder = _choose_folder(given, family, key) if place == FOLDER else None
    hub_id, revision = _name_hub_model(given, info, f"{key}-{family}") if place == HUB else (None, None)
    if place != OWN and folder is None and hub_id is None:
        raise SettingsError(f"Choose weights of {info.title}: a folder, or a name on the hub.")
    return {"folder": folder, "hub_id": hub_id, "revision": revision}


def _choose_folder(given: ModelSettings, family: ModelName, key: str) -> str | None:
    """One of the pipeline folders that were found; the one given is offered even if it was not."""
    models = library(config().model_roots)
    found = {str(pipeline.path): pipeline for pipeline in models.of_family(family)}
    labels = {
        path: f"{pipeline.name} · " + ("not whole" if pipeline.problem else words.size(pipeline.num_bytes))
        for path, pipeline in found.items()
    }
    if given.folder and given.folder not in labels:
        labels[given.folder] = f"{Path(given.folder).name} · not found"
    if not labels:
        _say_what_is_missing(models, family)
        return None
    options = list(labels)
    whole = next((path for path, pipeline in found.items() if not pipeline.problem), None)
    return st.selectbox("Pipeline folder", options, place_of("folder", options, given.folder or whole),
                        key=f"{key}-{family}-folder", format_func=lambda path: labels.get(path, path),
                        on_change=keep_in_address, args=("folder", f"{key}-{family}-folder"))


def _say_what_is_missing(models: ModelLibrary, family: ModelName) -> None:
    """Where to put a folder, and what lies there instead."""
    roots = " or ".join(f"`{root}`" for root in config().model_roots)
    others = sorted({MODEL_INFO[name].title for pipeline in models.pipelines for name in pipeline.families
                     if MODEL_INFO[name].needs_folder and name != family})
    st.info(f"No pipeline of {MODEL_INFO[family].title} was found. Put its diffusers folder (the one with "
            f"model_index.json) into {roots}, or start the workbench with PALATE_MODEL_FOLDERS naming where it lies."
            + (f" Found there: {', '.join(others)}." if others else ""), icon=":material/folder_off:")


def _name_hub_model(given: ModelSettings, info: ModelInfo, key: str) -> tuple[str | None, str | None]:
    """An id of the hub and its revision. Raises SettingsError for what could be none."""
    name, version = st.columns([2, 1], gap="medium")
    hub_id = name.text_input("Name on the hub", given.hub_id or "", key=f"{key}-hub", bind="query-params", max_chars=96,
                             placeholder="OWNER/NAME", help=describe("model.hub_id").help).strip()
    revision = version.text_input("Revision", given.revision or "", key=f"{key}-revision", bind="query-params",
                                  max_chars=100, placeholder="main", help=describe("model.revision").help).strip()
    st.caption("Such as " + ", ".join(f"`{known}`" for known in info.hub_ids) + ".")
    if hub_id and not re.fullmatch(HUB_ID, hub_id):
        raise SettingsError(f"{hub_id} is no name that the hub could have; it looks like OWNER/NAME.")
    if revision and not re.fullmatch(REVISION, revision):
        raise SettingsError(f"{revision} is no revision that the hub could have; name a commit, a tag or a branch.")
    return hub_id or None, (revision or None) if hub_id else None


def _draw_details(suited: ModelSettings, given: ModelSettings, weights: dict[str, Any], key: str) -> dict[str, Any]:
    """What the weights start from, the images' side, and the precision."""
    start, side, precision = st.columns([2, 1, 1], gap="medium")
    with start:
        started = _choose_start(given, weights["folder"], key)
    resolution = side.number_input("Pixels a side", 16, 4096, given.resolution, 16, key=f"{key}-resolution",
                                   bind="query-params", placeholder=str(MODEL_INFO[suited.name].image_size),
                                   help=describe("model.resolution").help)
    shape = describe("model.precision")
    chosen = precision.selectbox("Precision", shape.options, shape.options.index(suited.precision),
                                 key=f"{key}-precision", help=shape.help, bind="query-params")
    return {"start_from": started, "resolution": resolution, "precision": chosen}


def _further_words(start: RunSettings) -> str:
    """What suits the family and has no field here."""
    shift, tuning = start.sampling.shift, start.tuning
    grid = "the model's own grid" if shift == "model" else f"a grid shifted by {shift:g}"
    what = {"lora": f"a LoRA of {'the blocks' if tuning.layers == 'blocks' else 'every linear layer'}",
            "full": "all weights"}[tuning.method]
    how = "with" if tuning.gradient_checkpointing else "without"
    return (f"Trained: {what}, on {grid}, {how} gradient checkpointing; the gallery is drawn in "
            f"{start.evaluation.num_steps} steps. Advanced has these settings, and all others.")


def _choose_start(given: ModelSettings, folder: str | None, key: str) -> str | None:
    """A LoRA or a transformer that was found, or the model's own weights."""
    starts = library(config().model_roots).starts_for(given.name, folder)
    labels = {"": _OWN_START} | {str(start.path): _label(start) for start in starts}
    if given.start_from and given.start_from not in labels:
        labels[given.start_from] = f"{Path(given.start_from).name} · not found"
    options = list(labels)
    chosen = st.selectbox("Starting point", options, place_of("start", options, given.start_from), key=f"{key}-start",
                          format_func=lambda path: labels.get(path, path), help=describe("model.start_from").help,
                          on_change=keep_in_address, args=("start", f"{key}-start"))
    return chosen or None


def _label(start: FoundStart) -> str:
    return f"{_KINDS[start.kind]} · {start.name} · {words.size(start.num_bytes)}"


def _is_distilled(weights: dict[str, Any], family: ModelName) -> bool:
    """Whether the chosen weights are a distilled model's, as far as files on this machine tell."""
    with suppress(ValueError, OSError):
        hub_id = weights["hub_id"]
        folder = cached_folder(hub_id, weights["revision"]) if hub_id else Path(weights["folder"])
        return folder is not None and is_distilled(folder, family)
    return False


def _has_gpu() -> bool:
    """Whether a worker has one; where no worker is known, it is hoped so."""
    with database().read() as session:
        devices = [worker.device for worker in list_workers(session)]
    return not devices or any(device != "cpu" for device in devices)
