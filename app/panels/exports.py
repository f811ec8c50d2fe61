"""Taking a run home: ask for an export of a checkpoint, and download what is done."""

from __future__ import annotations

from typing import Any, get_args

import streamlit as st

from app import words
from app.connection import config, database
from app.file_routes import export_address
from engine.catalogue import EXPORT_INFO, ExportPrecision, why_not
from store.permissions import Permissions
from store.results import ExportRow, checkpoints_of, exports_of
from store.runs import RunDetail, request_export
from workers.queue import ring


def draw_exports(run: RunDetail) -> None:
    """Draw the form and the list."""
    with database().read() as session:
        checkpoints, exports = checkpoints_of(session, run.id), exports_of(session, run.id)
    if not checkpoints:
        st.info(f"The first checkpoint comes at step {run.settings.checkpoints.every}; then it can be exported here.",
                icon=":material/save:")
    else:
        step, form, kept, button = st.columns([3, 4, 2, 2], vertical_alignment="bottom")
        # No "2 min ago" in the labels: a choice whose label changes is lost at the next refresh.
        labels = {row.step: f"Step {row.step:,} · {words.size(row.num_bytes)}" for row in checkpoints}
        chosen = step.selectbox("Checkpoint", list(labels), key="export-step",
                                format_func=lambda value: labels.get(value, str(value)))
        name = form.selectbox("Format", list(EXPORT_INFO), key="export-format", format_func=format_title)
        precision = kept.selectbox("Precision", get_args(ExportPrecision), key="export-precision",
                                   help="What the weights are held in; bfloat16 and float16 halve the file.")
        push, public = _draw_sending()
        asked = {"step": chosen, "format": name, "precision": precision, "push": push, "public": public}
        refusal = why_not(name, run.settings.tuning.method, run.settings.model.name)
        st.caption(EXPORT_INFO[name].help)
        if refusal is not None:
            st.warning(refusal, icon=":material/block:")
        button.button("Export", icon=":material/upgrade:", type="primary", width="stretch", on_click=_request,
                      args=(run.id, asked), disabled=refusal is not None)
    for export in exports:
        _draw_export(export)


def format_title(name: str) -> str:
    """A format's title; its name, for one that is no longer offered."""
    return EXPORT_INFO[name].title if name in EXPORT_INFO else name


def _draw_sending() -> tuple[str | None, bool]:
    """The hub's model that an export is sent to as well, and whether for everyone; nothing where none is permitted."""
    permitted = config().hub_push
    if not permitted:
        return None, False
    field, check = st.columns([5, 2], vertical_alignment="bottom")
    where = "any account" if "*" in permitted else ", ".join(permitted)
    name = field.text_input("Send to the Hugging Face hub too", key="export-push", placeholder="ORG/NAME",
                            help=f"As with `palate export --push`: {where}. The token is the worker's (HF_TOKEN, or "
                            "its `hf auth login`); none is kept here.")
    public = check.checkbox("Public", key="export-public", disabled=not name, help="For everyone to see; else private.")
    return name.strip() or None, bool(name) and public


def _request(run_id: str, asked: dict[str, Any]) -> None:
    """Queue an export; `asked` are `request_export`'s arguments."""
    try:
        if asked["push"] is not None:
            Permissions.of(config()).require_push(asked["push"])
        with database().write() as session:
            job_id = request_export(session, run_id, **asked).job_id
    except ValueError as error:  # the checkpoint was replaced meanwhile, or the hub has no such name
        st.toast(str(error))
        return
    ring(config(), job_id)


def _draw_export(export: ExportRow) -> None:
    with st.container(border=True):
        about, action = st.columns([5, 2], vertical_alignment="center")
        about.markdown(f"**Step {export.step:,}** · {format_title(export.format)} · "
                       f"{words.ago(export.created_at)}")
        if export.report:
            about.caption(export.report)
        # A file that could not be sent to the hub is here all the same.
        if export.path and export.state not in ("queued", "running"):
            action.link_button(f"Download · {words.size(export.num_bytes or 0)}", export_address(export.id),
                               icon=":material/download:", width="stretch")
        match export.state:
            case "done":
                pass
            case "failed":
                about.error(words.cause(export.error or ""), icon=":material/error:")
            case "cancelled":
                action.caption("Cancelled")
            case _:
                action.caption(":material/hourglass_empty: Being made …")
