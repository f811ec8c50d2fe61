"""The workbench's frame: its pages, each with an address of its own. Streamlit runs this file at every interaction."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app.panels.frame import draw_frame

COMPONENTS = Path(__file__).parent / "components"
st.set_page_config(page_title="Palate", page_icon=str(COMPONENTS / "icon.svg"), layout="wide")
PAGES = [
    st.Page("views/runs.py", title="Runs", icon=":material/grid_view:", url_path="runs", default=True),
    st.Page("views/new_run.py", title="New run", icon=":material/add_circle:", url_path="new"),
    st.Page("views/prompts.py", title="Prompts", icon=":material/notes:", url_path="prompts"),
    st.Page("views/run.py", title="Run", icon=":material/show_chart:", url_path="run", visibility="hidden"),
]
st.logo(str(COMPONENTS / "logo.svg"), size="large")
page = st.navigation(PAGES, position="top")
draw_frame()
page.run()
