"""A new run: what to start from, prompts, rewards, the main settings; all settings as text behind one door.

/new?model=…&preset=…&prompts=…, or /new?like=RUN to start from an earlier run's settings; with &less=memory, changed so
that they take less. The form lives there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import words
from app.connection import config, database
from app.estimates import memory, size_of, times, work
from app.forms import (
    MAIN_SETTINGS,
    draw,
    draw_rewards,
    keep_in_address,
    place_of,
    value_at,
    with_values,
)
from app.model_form import choose_family, draw_model, suited
from app.panels.status import lighter
from engine.hub import look_up
from engine.memory_advice import changed
from engine.model_checks import check_model, folder_here
from engine.presets import PRESETS
from engine.servers.check import check_server
from engine.settings import ModelName, RunSettings
from engine.settings_text import SettingsError, from_yaml, parse_settings
from engine.time_estimate import Speed
from store.permissions import Permissions
from store.presence import list_workers
from store.prompt_sets import list_prompt_sets
from store.runs import RunDetail, create_run, get_run, job_of
from store.speed import measured_speed
from workers.queue import ring

BUILT_IN = "built-in"
COLUMNS = 3


def earlier_run() -> RunDetail | None:
    """The run that the address names to start from, if there is such a run."""
    like = st.query_params.get("like")
    if not like:
        return None
    with database().read() as session:
        return get_run(session, like)


def choose_start(earlier: RunDetail | None, family: ModelName) -> tuple[str, str, RunSettings]:
    """What the form starts from: a short key for its widgets, a title, and the settings."""
    if earlier is not None:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown("Starting from the settings of")
            st.page_link("views/run.py", label=earlier.name, query_params={"id": earlier.id}, width="content")
            if st.button("Start from a preset instead", type="tertiary"):
                st.switch_page("views/new_run.py")
        changes = lighter(earlier) if st.query_params.get("less") == "memory" else ()
        if changes:
            st.info(f"Changed, for less memory: {words.changes(changes)}.", icon=":material/compress:")
            return f"{earlier.id[:6]}-less", f"{earlier.name}, less memory", changed(earlier.settings, changes)
        return earlier.id[:6], earlier.name, earlier.settings
    names = [name for name, preset in PRESETS.items() if family == "builtin" or not preset.builtin]
    name = st.radio(
        "Start from", names, place_of("preset", names), format_func=lambda known: PRESETS[known].title,
        captions=[PRESETS[name].help for name in names], horizontal=True,
        key=f"preset-choice-{family}", on_change=keep_in_address, args=("preset", f"preset-choice-{family}"),
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


def draw_form(start: RunSettings, family: ModelName, key: str, model_place: DeltaGenerator) -> RunSettings:
    """Model, rewards and main settings as widgets; returns valid settings. Raises SettingsError."""
    with model_place:
        start, key = draw_model(start, family, key)
    st.subheader("Rewards", anchor=False)
    rewards = draw_rewards(start, key, config().reward_functions)
    st.subheader("Main settings", anchor=False)
    values: dict[str, Any] = {"rewards": rewards}
    columns = st.columns(COLUMNS, gap="medium")
    for place, setting in enumerate(MAIN_SETTINGS):
        with columns[place % COLUMNS]:
            values[setting.path] = draw(setting, value_at(start, setting.path), f"{key}-{setting.path}")
    return parse_settings(with_values(start, values))


def draw_text(start: str, key: str) -> RunSettings:
    """All settings as YAML; returns valid settings. Raises SettingsError."""
    st.caption("Everything a run is told, as `palate train` reads it. Keys that are left out keep their defaults; a "
               "model's folder may be named as it is seen from the model folders.")
    uploaded = st.file_uploader("Read a settings.yaml", type=["yaml", "yml"], key=f"{key}-upload", max_upload_size=1)
    # Another file is another text: the field must not keep what was typed into the last.
    name = f"{key}-yaml" if uploaded is None else f"{key}-yaml-{uploaded.file_id}"
    text = st.text_area("Settings", start if uploaded is None else decoded(uploaded.getvalue()), height=520, key=name,
                        label_visibility="collapsed")
    return from_yaml(text or "")


def decoded(data: bytes) -> str:
    """An uploaded settings file as text. Raises SettingsError."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"The file is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error


def draw_settings(
    start: RunSettings, family: ModelName, key: str, model_place: DeltaGenerator
) -> RunSettings | None:
    """The form, its model's part in a place of its own, or the advanced text instead.

    None, with the reasons shown, while they are not valid.
    """
    door = f"{key}-{family}"
    try:
        if st.session_state.get(f"{door}-advanced", False):
            drawn = st.session_state.get(f"{door}-drawn") or suited(start, family).to_yaml()
            settings = draw_text(drawn, door)
        else:
            settings = draw_form(start, family, key, model_place)
            # The door opens on what the form says now.
            st.session_state[f"{door}-drawn"] = settings.to_yaml()
    except SettingsError as error:
        settings = None
        for sentence in str(error).splitlines():
            st.error(sentence, icon=":material/error:")
    st.toggle("Advanced: edit all settings as text", key=f"{door}-advanced",
              help="Shows every setting as YAML. Going back to the form drops the changes made in the text.")
    return settings


def permitted(settings: RunSettings) -> RunSettings | None:
    """The settings with whole paths, if their model may and can be used; None, with the reason shown, if not."""
    try:
        allowed = Permissions.of(config()).checked(settings)
        check_model(allowed)
        size_of(allowed, folder_here(allowed.model))
    except ValueError as error:
        st.error(str(error), icon=":material/error:")
        return None
    return allowed


def launch(name: str, settings: RunSettings, prompt_set_id: str | None) -> None:
    """Ask the model's hub and the rewards' servers, make the run, ring, and go to its page; or say what is wrong.

    The commit that a hub's revision is at now is the run's, however the branch moves.
    """
    model = settings.model
    try:
        if model.hub_id is not None:
            with st.spinner("Asking the model's hub…"):
                commit = look_up(model.hub_id, model.revision, model.name)
            settings = settings.model_copy(update={"model": model.model_copy(update={"revision": commit})})
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
        earlier = earlier_run()
        model, prompts = st.columns(2, gap="medium")
        with model:
            family = choose_family(earlier.settings.model.name if earlier else "builtin")
        with prompts:
            prompt_set_id = choose_prompts()
        model_place = st.container()
        key, title, start = choose_start(earlier, family)
        settings = draw_settings(start, family, key, model_place)
    with summary, st.container(border=True):
        st.subheader("Launch", anchor=False)
        name = st.text_input("Name", title, key=f"{key}-name", bind="query-params", max_chars=120)
        allowed = None if settings is None else permitted(settings)
        if allowed is None:
            st.caption("Something in the settings needs a change before the run can start.")
        else:
            draw_summary(allowed, prompt_set_id)
        if st.button("Start the run", type="primary", icon=":material/rocket_launch:", disabled=allowed is None,
                     width="stretch"):
            assert allowed is not None
            launch(name or "", allowed, prompt_set_id)


def devices_and_speed(settings: RunSettings, folder: Path | None) -> tuple[list[str], Speed | None]:
    """What workers compute on, and how fast earlier runs of the model were."""
    size = size_of(settings, folder)
    with database().read() as session:
        speed = None if size is None else measured_speed(session, settings, size)
        return [worker.device for worker in list_workers(session)], speed


def draw_summary(settings: RunSettings, prompt_set_id: str | None) -> None:
    """What the run will do and what may surprise."""
    folder = folder_here(settings.model)
    st.caption(work(settings, folder))
    devices, speed = devices_and_speed(settings, folder)
    for sentence in times(settings, folder, devices, speed):
        st.caption(sentence)
    if settings.compute.device != "cpu":
        st.caption(memory(settings, folder, devices) or "How much memory and time it takes is told in the run's log "
                   "once the model is here: it is downloaded first.")
    total = sum(reward.weight for reward in settings.rewards)
    st.markdown("  \n".join(
        f"{words.reward_title(reward.key)}: " + (f"{100 * reward.weight / total:.0f} % of the mix" if reward.weight
                                                   else "measured only")
        for reward in settings.rewards
    ))
    if not any(reward.name == "composition" for reward in settings.rewards):
        return
    if settings.model.name != "builtin":
        st.caption("Composition judges the built-in model's flat scenes; what other models draw hardly ever passes.")
    elif prompt_set_id:
        st.caption("Composition can only judge prompts that are worded like the built-in ones, such as "
                   "“a red circle left of a blue square”.")


draw_page()
