"""The new-run form: `draw` turns a setting's description (app/field_shapes.py) into the widget that suits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from app import words
from app.field_shapes import describe
from app.reward_options import draw_options
from engine.catalogue import REWARD_INFO
from engine.settings import REWARD_OPTIONS, RunSettings


@dataclass(frozen=True)
class MainSetting:
    """A setting that is shown before the advanced door: its place in RunSettings, and words for it."""

    path: str
    label: str


MAIN_SETTINGS: tuple[MainSetting, ...] = (
    MainSetting("iterations", "Iterations"),
    MainSetting("grpo.prompts_per_iteration", "Prompts an iteration"),
    MainSetting("grpo.group_size", "Images a prompt"),
    MainSetting("sampling.num_steps", "Denoising steps"),
    MainSetting("sampling.guidance_scale", "Guidance in training"),
    MainSetting("evaluation.guidance_scale", "Guidance in the gallery"),
    MainSetting("window.size", "Window (stochastic steps)"),
    MainSetting("optimiser.learning_rate", "Learning rate"),
    MainSetting("tuning.rank", "LoRA rank"),
    MainSetting("evaluation.every", "Iterations between samples"),
    MainSetting("seed", "Seed"),
)


def value_at(settings: RunSettings, path: str) -> Any:
    """The value at a dotted path."""
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


def with_values(settings: RunSettings, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as plain data with some dotted paths replaced; not validated yet."""
    data: dict[str, Any] = settings.model_dump(mode="json")
    for path, value in values.items():
        *sections, name = path.split(".")
        place = data
        for section in sections:
            place = place[section]
        place[name] = value
    return data


def draw(setting: MainSetting, default: Any, key: str) -> Any:
    """The widget for a setting, bound to the page's address so that a reload keeps it; returns its value."""
    shape = describe(setting.path)
    match shape.kind:
        case "integer":
            low = None if shape.minimum is None else int(shape.minimum)
            high = None if shape.maximum is None else int(shape.maximum)
            return st.number_input(setting.label, low, high, int(default), 1, help=shape.help, key=key,
                                   bind="query-params")
        case "number":
            # Ten steps a decade: a learning rate of 1e-4 moves by 1e-5.
            step = float(f"{abs(default) or 1.0:.0e}") / 10
            return st.number_input(setting.label, shape.minimum, shape.maximum, float(default), step,
                                   format="%.1e" if abs(default) < 0.01 else "%.3g", help=shape.help, key=key,
                                   bind="query-params")
        case "choice":
            return st.selectbox(setting.label, shape.options, shape.options.index(default), help=shape.help, key=key,
                                bind="query-params")
        case "switch":
            return st.toggle(setting.label, bool(default), help=shape.help, key=key, bind="query-params")
    return st.text_input(setting.label, str(default), help=shape.help, key=key, bind="query-params")


def place_of(name: str, options: Sequence[str], usual: str | None = None) -> int:
    """The place of the option that the page's address gives for `name`; where it gives none, the usual or first one's.

    Streamlit's own binding writes an option's label into the address; names and ids of ours survive a new label.
    """
    wanted = st.query_params.get(name)
    for option in (wanted, usual):
        if option in options:
            return options.index(option)
    return 0


def keep_in_address(name: str, key: str) -> None:
    """Callback of a choice with the widget key `key`: the page's address says from now on what was chosen."""
    st.query_params[name] = st.session_state[key]


def draw_rewards(settings: RunSettings, key: str, functions_allowed: bool = False) -> list[dict[str, Any]]:
    """A switch, a weight and options for every reward of the catalogue; returns those that are on, as settings.

    A reward that is given a label is offered once more below it. Functions are offered where the operator allows them.
    """
    given = {reward.key: reward.model_dump(mode="json") for reward in settings.rewards}
    chosen: list[tuple[str, dict[str, Any]]] = []
    for reward_key, reward in _offered(given, functions_allowed).items():
        title = REWARD_INFO[reward["name"]].title if reward_key == reward["name"] else words.reward_title(reward_key)
        drawn = _draw_reward(reward, title, f"{key}-{reward_key}", on=reward_key in given)
        number = 1
        while drawn is not None:
            chosen.append((reward_key, drawn))
            if reward_key != reward["name"] or not drawn.get("label"):
                break
            number += 1
            fresh = {"name": reward["name"], "weight": 1.0}
            drawn = _draw_reward(fresh, f"{title} ({number})", f"{key}-{reward_key}-{number}", on=False)
    # A form left as it is gives the settings it started from, order and all.
    order = [*given, *(name for name in REWARD_INFO if name not in given)]
    return [reward for _, reward in sorted(chosen, key=lambda row: order.index(row[0]))]


def _draw_reward(reward: dict[str, Any], title: str, key: str, *, on: bool) -> dict[str, Any] | None:
    """A reward's row, with its options if it is on; its settings then, else None."""
    info = REWARD_INFO[reward["name"]]
    switch, weight, about = st.columns([2.2, 1.6, 6], vertical_alignment="center")
    with switch:
        on = st.toggle(title, on, key=key, bind="query-params")
    with weight:
        value = st.number_input(
            f"Weight of {title}", 0.0, None, float(reward["weight"]), 0.1, format="%.2f", disabled=not on,
            key=f"{key}-weight", label_visibility="collapsed", bind="query-params",
            help="Its share in the mix; 0 = measured, not trained on.",
        )
    with about:
        low, high = info.range
        cost = f"about {info.milliseconds_an_image:g} ms an image"
        if info.milliseconds_on_gpu is not None:
            cost += f" on a CPU, {info.milliseconds_on_gpu:g} ms and {info.memory_mb / 1000:g} GB on a GPU (reckoned)"
        st.caption(f"{info.help} " + f"Scores from {low:g} to {high:g}; {cost}.".replace("-", "−"))
    return draw_options(reward | {"weight": value}, title, key) if on else None


def _offered(given: Mapping[str, dict[str, Any]], functions_allowed: bool) -> dict[str, dict[str, Any]]:
    """The rewards that the form shows, as settings by label or name: in the catalogue's order, labelled ones last."""
    catalogue = {
        str(name): given.get(name) or {"name": name, "weight": 1.0}
        for name in REWARD_INFO
        if functions_allowed or name in given or name not in REWARD_OPTIONS["function"]
    }
    return catalogue | {key: reward for key, reward in given.items() if key not in catalogue}
