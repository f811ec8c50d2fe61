"""The tail of a run's log."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence

import streamlit as st

from app.connection import database
from store.results import LogRow, log_tail


def log_html(lines: Sequence[LogRow]) -> str:
    """The lines as HTML that stays scrolled to the newest: a reversed column, newest first in the source."""
    shown = "".join(
        f'<div class="{html.escape(line.level)}"><time>{time.strftime("%H:%M:%S", time.localtime(line.time))}</time>'
        f"{html.escape(line.text)}</div>"
        for line in reversed(lines)
    )
    return f'<div class="palate-log">{shown}</div>'


def draw_log(run_id: str, num_lines: int = 200) -> None:
    """Draw the last lines, or say that there are none."""
    with database().read() as session:
        lines = log_tail(session, run_id, num_lines)
    if lines:
        st.html(log_html(lines))
    else:
        st.caption("Nothing has been logged yet.")
