"""A new run: what to start from, prompts, rewards, the main settings; all settings as text behind one door.

/new?preset=…&prompts=…, or /new?like=RUN to start from an earlier run's settings. The form lives in the address.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import words
from app.connection import config, database
from app.forms import (
    MAIN_SETTINGS,
    draw,
    draw_rewards,
    estimate,
    keep_in_address,
    memory,
    place_of,
    value_at,
    with_values,
)
from engine.catalogue import MODEL_INFO
from engine.presets import PRESETS
from engine.servers.check import check_server
from engine.settings import RunSettings
from engine.settings_text import SettingsError, from_yaml, parse_settings
from store.permissions import Permissions
from store.prompt_sets import list_prompt_sets
from store.runs import create_run, get_run, job_of
from workers.queue import ring

BUILT_IN = "built-in"
COLUMNS = 3


def choose_start() -> tuple[str, str, RunSettings]:
    """What the form starts from: a short key for its widgets, a title, and the settings."""
    like = st.query_params.get("like")
    if like:
        with database().read() as session:
            run = get_run(session, like)
        if run is not None:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown("Starting from the settings of")
                st.page_link("views/run.py", label=run.name, query_params={"id": run.id}, width="content")
                if st.button("Start from a preset instead", type="tertiary"):
                    st.switch_page("views/new_run.py")
            return run.id[:6], run.name, run.settings
    name = st.radio(
        "Start from", list(PRESETS), place_of("preset", list(PRESETS)), format_func=lambda known: PRESETS[known].title,
        captions=[preset.help for preset in PRESETS.values()], horizontal=True,
        key="preset-choice", on_change=keep_in_address, args=("preset", "preset-choice"),
    )
    return name, PRESETS[name].title, PRESETS[name].make()


def choose_prompts() -> str | None:
    """The prompt set's id, or None for the built-in prompts."""
    with database().read() as session:
        sets = {prompt_set.id: prompt_set for prompt_set in list_prompt_sets(session)}
    label = {BUILT_IN: "Built-in prompts (scenes of coloured shapes)"} | {
        key: f"{kept.name} · {words.count(kept.num_prompts, 'prompt')}" for key, kept in sets.items()
    }
    chosen = st.selectbox("Prompts", list(label), place_of("prompts", list(label)),
                          format_func=lambda key: label.get(key, key), key="prompts-choice",
                          on_change=keep_in_address, args=("prompts", "prompts-choice"))
    st.page_link("views/prompts.py", label="Upload prompts", icon=":material/upload:")
    return None if chosen == BUILT_IN else chosen


def draw_form(start: RunSettings, key: str) -> RunSettings:
    """Rewards and main settings as widgets; returns valid settings. Raises SettingsError."""
    st.subheader("Rewards", anchor=False)
    rewards = draw_rewards(start, key)
    st.subheader("Main settings", anchor=False)
    values: dict[str, Any] = {"rewards": rewards}
    columns = st.columns(COLUMNS, gap="medium")
    for place, setting in enumerate(MAIN_SETTINGS):
        with columns[place % COLUMNS]:
            values[setting.path] = draw(setting, value_at(start, setting.path), f"{key}-{setting.path}")
    return parse_settings(with_values(start, values))


def draw_text(start: str, key: str) -> RunSettings:
    """All settings as YAML; returns valid settings. Raises SettingsError."""
    st.caption("Everything a run is told, as `palate train` reads it. Keys that are left out keep their defaults.")
    text = st.text_area("Settings", start, height=520, key=f"{key}-yaml", label_visibility="collapsed")
    return from_yaml(text or "")


def draw_settings(start: RunSettings, key: str) -> RunSettings | None:
    """The form, or the advanced text in its place; None, with the reasons shown, while they are not valid."""
    advanced = st.session_state.get(f"{key}-advanced", False)
    try:
        if advanced:
            settings = draw_text(st.session_state.get(f"{key}-drawn", start.to_yaml()), key)
        else:
            settings = draw_form(start, key)
            # The door opens on what the form says now.
            st.session_state[f"{key}-drawn"] = settings.to_yaml()
    except SettingsError as error:
        settings = None
        for sentence in str(error).splitlines():
            st.error(sentence, icon=":material/error:")
    st.toggle("Advanced: edit all settings as text", key=f"{key}-advanced",
              help="Shows every setting as YAML. Going back to the form drops the changes made in the text.")
    return settings


def launch(name: str, settings: RunSettings, prompt_set_id: str | None) -> None:
    """Try its rewards' servers, make the run, ring for a worker, and go to its page; or say what is wrong."""
    try:
        with st.spinner("Asking the rewards' servers…"):
            for reward in settings.rewards:
                check_server(reward)
        with database().write() as session:
            run_id = create_run(session, name=name, settings=settings, prompt_set_id=prompt_set_id,
                                permissions=Permissions.of(config())).id
            job_id = job_of(session, run_id)
    except ValueError as error:
        st.error(str(error), icon=":material/error:")
        return
    ring(config(), job_id)
    st.switch_page("views/run.py", query_params={"id": run_id})


def draw_page() -> None:
    """The page: choices on the left, the summary and the launch button on the right."""
    st.header("New run", anchor=False)
    choices, summary = st.columns([2.7, 1], gap="large")
    with choices:
        key, title, start = choose_start()
        model, prompts = st.columns(2, gap="medium")
        with model:
            # A run made here may name no folder of the server's (store/runs.py).
            names = [name for name, info in MODEL_INFO.items() if not info.needs_folder]
            chosen = st.selectbox("Model", names, names.index(start.model.name), key=f"{key}-model",
                                  format_func=lambda known: MODEL_INFO[known].title)
            st.caption(MODEL_INFO[chosen].help)
        with prompts:
            prompt_set_id = choose_prompts()
        settings = draw_settings(parse_settings(with_values(start, {"model.name": chosen})), key)
    with summary, st.container(border=True):
        st.subheader("Launch", anchor=False)
        name = st.text_input("Name", title, key=f"{key}-name", bind="query-params", max_chars=120)
        if settings is None:
            st.caption("Something in the settings needs a change before the run can start.")
        else:
            draw_summary(settings, prompt_set_id)
        if st.button("Start the run", type="primary", icon=":material/rocket_launch:", disabled=settings is None,
                     width="stretch"):
            assert settings is not None
            launch(name or "", settings, prompt_set_id)


def draw_summary(settings: RunSettings, prompt_set_id: str | None) -> None:
    """What the run will do and what may surprise."""
    st.caption(estimate(settings))
    if settings.compute.device != "cpu" and memory(settings):
        st.caption(memory(settings))
    total = sum(reward.weight for reward in settings.rewards)
    st.markdown("  \n".join(
        f"{words.reward_title(reward.key)}: " + (f"{100 * reward.weight / total:.0f} % of the mix" if reward.weight
                                                   else "measured only")
        for reward in settings.rewards
    ))
    if prompt_set_id and any(reward.name == "composition" for reward in settings.rewards):
        st.caption("Composition can only judge prompts that are worded like the built-in ones, such as "
                   "“a red circle left of a blue square”.")


draw_page()
