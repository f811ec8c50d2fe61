"""The workbench's door to the store: one configuration and one pool of connections a server process."""

from __future__ import annotations

import streamlit as st

from store.config import Config, load_config
from store.database import Database


@st.cache_resource(show_spinner=False)
def config() -> Config:
    """The installation's configuration."""
    return load_config()


@st.cache_resource(show_spinner=False)
def database() -> Database:
    """The database; connects at the first query."""
    return Database(config())
