"""The options of a reward as form fields: label, gate, weights, server, judge or function, as far as it has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import streamlit as st
from pydantic import BaseModel

from app.field_shapes import describe
from engine.settings import REWARD_OPTIONS, JudgeSettings, RewardSettings, ServerSettings

_OF_STYLE = {
    "score": ("rubric", "lowest", "highest", "max_tokens"),
    "question": ("questions", "max_tokens"),
    "unified_reward": ("max_tokens",),
}
"""What a judge is told beside its style."""


def draw_options(reward: dict[str, Any], title: str, key: str) -> dict[str, Any]:
    """The reward's settings with what its options say now; left as they are they give what they started from."""
    name = reward["name"]
    has = {option for option, rewards in REWARD_OPTIONS.items() if name in rewards}
    # What a reward cannot do without is open to the eye.
    with st.expander(f"Options of {title}", expanded=bool(has & {"server", "function"})):
        drawn = {
            "label": _text("label", reward.get("label") or "", RewardSettings, key) or None,
            "gate": _number("gate", reward.get("gate"), RewardSettings, key),
        }
        for option in ("weights", "revision", "function"):
            if option in has:
                drawn[option] = _text(option, reward.get(option) or "", RewardSettings, key) or None
        if "server" in has:
            drawn["server"] = _draw_server(reward.get("server"), f"{key}-server")
        if "judge" in has:
            drawn["judge"] = _draw_judge(reward.get("judge"), f"{key}-judge")
    given = {option: value for option, value in reward.items() if option not in drawn}
    return given | {option: value for option, value in drawn.items() if value is not None}


def _draw_server(given: dict[str, Any] | None, key: str) -> dict[str, Any] | None:
    """The server as data; None while it has no address."""
    values = {name: field.default for name, field in ServerSettings.model_fields.items()} | {"url": ""} | (given or {})
    drawn = _fields(ServerSettings.model_fields, values, ServerSettings, key)
    return drawn if drawn["url"] else None


def _draw_judge(given: dict[str, Any] | None, key: str) -> dict[str, Any] | None:
    """What the judge is asked, as data; None where all is as usual and nothing was said."""
    usual = JudgeSettings().model_dump(mode="json")
    values = usual | (given or {})
    style = _fields(["style"], values, JudgeSettings, key)
    drawn = usual | style | _fields(_OF_STYLE[style["style"]], values, JudgeSettings, key)
    return None if given is None and drawn == usual else drawn


def _fields(names: Iterable[str], values: dict[str, Any], model: type[BaseModel], key: str) -> dict[str, Any]:
    """A widget for each of a section's settings; returns their values."""
    drawn: dict[str, Any] = {}
    for name in names:
        shape, value = describe(name, model), values[name]
        if shape.kind == "choice":
            drawn[name] = st.selectbox(_label(name), shape.options, shape.options.index(value), help=shape.help,
                                       key=f"{key}-{name}", bind="query-params")
        elif shape.kind == "integer":
            drawn[name] = int(_number(name, value, model, key))
        elif shape.kind == "number":
            drawn[name] = _number(name, value, model, key)
        elif isinstance(value, list):
            lines = st.text_area(f"{_label(name)}, a line each", "\n".join(value), help=shape.help, key=f"{key}-{name}")
            drawn[name] = [line.strip() for line in (lines or "").splitlines() if line.strip()]
        else:
            drawn[name] = _text(name, value, model, key)
    return drawn


def _number(name: str, value: float | None, model: type[BaseModel], key: str) -> Any:
    """A number; None where the field is left empty."""
    shape = describe(name, model)
    kind: type[int] | type[float] = int if shape.kind == "integer" else float
    low, high, number = (None if bound is None else kind(bound) for bound in (shape.minimum, shape.maximum, value))
    return st.number_input(_label(name), low, high, number, help=shape.help, key=f"{key}-{name}", bind="query-params")


def _text(name: str, value: str, model: type[BaseModel], key: str) -> str:
    shape = describe(name, model)
    text = st.text_input(_label(name), value, help=shape.help, key=f"{key}-{name}", bind="query-params")
    return (text or "").strip()


def _label(name: str) -> str:
    return {"url": "Address"}.get(name, name.replace("_", " ").capitalize())
