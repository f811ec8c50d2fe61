"""What every page has: the style sheet, and a word when no worker is there to do the work."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app.connection import config, database
from store.presence import list_workers

_STYLE = (Path(__file__).parent / "frame.css").read_text(encoding="utf-8")


def draw_frame() -> None:
    """Draw the style sheet and, if need be, the warning that nobody works."""
    st.html(f"<style>{_STYLE}</style>")
    _warn_without_worker()


@st.fragment(run_every=10)
def _warn_without_worker() -> None:
    with database().read() as session:
        workers = list_workers(session)
    patience = config().lease_seconds
    if workers and all(worker.silent_seconds > patience for worker in workers):
        st.warning("No worker has been heard of for a while, so runs wait. Is `palate up` (or `python -m workers`) "
                   "running?", icon=":material/warning:")
