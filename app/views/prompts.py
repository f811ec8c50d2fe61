"""Prompt sets: upload with a preview, the list, the text of a set; its address is /prompts?set=ID."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from app import words
from app.connection import database
from engine.prompt_files import hold_out
from store.prompt_sets import (
    ParsedPrompts,
    PromptFileError,
    create_prompt_set,
    get_prompt_set,
    list_prompt_sets,
    parse_prompts,
    prompts_of,
)

PREVIEW = 8
SHOWN = 2000


def split_line(num_prompts: int) -> str:
    """How a set is divided: "80 to train on, 20 held out"."""
    train, held_out = hold_out([str(number) for number in range(num_prompts)])
    return f"{len(train):,} to train on, {len(held_out):,} held out for samples and scores"


def draw_upload() -> None:
    """The upload with its preview, refusal or success."""
    with st.container(border=True):
        st.subheader("Upload prompts", anchor=False)
        st.caption("A .txt file (one prompt a line), a .csv with a `prompt` column, or .jsonl with a `prompt` key a "
                   "line. UTF-8, up to 5 MB and 100,000 prompts.")
        file = st.file_uploader("Prompt file", label_visibility="collapsed", max_upload_size=5,
                                key=f"file-{st.session_state.get('uploads', 0)}")
        if file is None:
            return
        try:
            parsed = parse_prompts(file.name, file.getvalue())
        except PromptFileError as error:
            st.error(str(error), icon=":material/error:")
            return
        draw_preview(parsed)
        name = st.text_input("Name of the set", Path(file.name).stem[:100], key=f"name-{file.file_id}")
        if st.button("Keep this set", type="primary", icon=":material/check:"):
            keep(name, parsed, file.name)


def keep(name: str, parsed: ParsedPrompts, source_name: str) -> None:
    """Store the set and show it."""
    try:
        with database().write() as session:
            prompt_set = create_prompt_set(session, name, parsed, source_name)
    except ValueError as error:
        st.error(str(error), icon=":material/error:")
        return
    st.session_state["uploads"] = st.session_state.get("uploads", 0) + 1
    st.query_params["set"] = prompt_set.id
    st.rerun()


def draw_preview(parsed: ParsedPrompts) -> None:
    """Counts, notes and the first prompts."""
    removed = parsed.num_duplicates_removed
    st.markdown(f"**{words.count(len(parsed.prompts), 'prompt')}**"
                + (f", {words.count(removed, 'duplicate')} left out" if removed else ", no duplicates")
                + f": {split_line(len(parsed.prompts))}.")
    for note in parsed.notes:
        st.caption(note)
    shown = parsed.prompts[:PREVIEW]
    st.code("\n".join(shown) + (f"\n… and {len(parsed.prompts) - PREVIEW:,} more"
                                if len(parsed.prompts) > PREVIEW else ""), language=None, wrap_lines=True)


def draw_list() -> None:
    """All sets, newest first."""
    with database().read() as session:
        sets = list_prompt_sets(session)
    if not sets:
        st.info("No sets of your own yet. Runs can use the built-in prompts: captions of coloured shapes that the "
                "built-in model understands.", icon=":material/notes:")
        return
    for prompt_set in sets:
        with st.container(border=True):
            about, view, use = st.columns([5, 1.2, 1.6], vertical_alignment="center")
            about.markdown(f"**{_plain(prompt_set.name)}**")
            about.caption(f"{words.count(prompt_set.num_prompts, 'prompt')} · from {_plain(prompt_set.source_name)} · "
                          f"{words.ago(prompt_set.created_at)}")
            if view.button("Show", key=f"show-{prompt_set.id}", width="stretch"):
                st.query_params["set"] = prompt_set.id
                st.rerun()
            if use.button("Use in a run", key=f"use-{prompt_set.id}", width="stretch"):
                st.switch_page("views/new_run.py", query_params={"prompts": prompt_set.id})


def draw_set(set_id: str) -> None:
    """The prompts of one set."""
    with database().read() as session:
        prompt_set = get_prompt_set(session, set_id)
        prompts = prompts_of(session, set_id) if prompt_set else []
    if prompt_set is None:
        st.info("This address names no prompt set of this workbench.")
        return
    with st.container(border=True):
        title, use, close = st.columns([5, 1.6, 1.2], vertical_alignment="center")
        title.subheader(_plain(prompt_set.name), anchor=False)
        if use.button("Use in a run", type="primary", key="use-shown", width="stretch"):
            st.switch_page("views/new_run.py", query_params={"prompts": prompt_set.id})
        if close.button("Close", key="close-shown", width="stretch"):
            st.query_params.pop("set", None)
            st.rerun()
        st.caption(f"{words.count(prompt_set.num_prompts, 'prompt')}: {split_line(prompt_set.num_prompts)}."
                   + (f" The first {SHOWN:,} are shown." if len(prompts) > SHOWN else ""))
        st.dataframe(pd.DataFrame({"Prompt": prompts[:SHOWN]}), height=320,
                     column_config={"Prompt": st.column_config.TextColumn(width="large")})


def _plain(text: str) -> str:
    """A name without meaning for Markdown."""
    return "".join(f"\\{mark}" if mark in "\\`*_{}[]()#+-.!|~:$<>" else mark for mark in text)


def draw_page() -> None:
    """The page."""
    st.header("Prompts", anchor=False)
    set_id = st.query_params.get("set")
    if set_id:
        draw_set(set_id)
    draw_upload()
    st.subheader("Your sets", anchor=False)
    draw_list()


draw_page()
