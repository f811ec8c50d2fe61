"""Rewards with options on the new-run page: fields from the settings, and a server that is tried before the launch."""

from __future__ import annotations

from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from engine.servers.allowed import KEYS_VARIABLE, SERVERS_VARIABLE
from engine.settings import RunSettings
from engine.settings_text import parse_settings
from store.permissions import Permissions
from store.runs import create_run, get_run, list_runs
from tests.app.conftest import Workbench
from tests.app.test_pages import button, open_page, text_of
from tests.loopback_server import Loopback, origin_of, serve

CANARY = "sk-canary-7f3a"


def field(kind: Any, label: str) -> Any:
    return next(found for found in kind if found.label == label)


def newest(workbench: Workbench) -> RunSettings:
    with workbench.database.read() as session:
        run = get_run(session, list_runs(session)[0].id)
    assert run is not None
    return run.settings


def page_with_judge(loopback: Loopback) -> AppTest:
    at = open_page("new_run")
    field(at.toggle, "Judge").set_value(True).run()
    assert "needs `server`; add it" in at.error[0].value
    assert button(at, "Start the run").disabled is True
    field(at.text_input, "Address").set_value(loopback.url).run()
    return at


def says(asked: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"message": {"content": "yes"}}]}


def test_a_judge_is_set_up_tried_and_launched(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(says) as loopback:
        monkeypatch.setenv(SERVERS_VARIABLE, origin_of(loopback))
        at = page_with_judge(loopback)
        assert not at.error
        field(at.selectbox, "Style").select("question").run()
        field(at.text_area, "Questions, a line each").set_value("Is it sharp?\n\n Is it red? \n").run()
        field(at.number_input, "Concurrency").set_value(2).run()
        button(at, "Start the run").click().run()
        assert not at.error, at.error
        assert len(loopback.asked) == 2
    (judge,) = [reward for reward in newest(workbench).rewards if reward.name == "judge"]
    assert judge.judge is not None and judge.judge.questions == ("Is it sharp?", "Is it red?")
    assert judge.server is not None and (judge.server.url, judge.server.concurrency) == (loopback.url, 2)


def test_a_server_that_is_not_allowed_starts_nothing(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVERS_VARIABLE, raising=False)
    with workbench.database.read() as session:
        before = len(list_runs(session))
    with serve(says) as loopback:
        at = page_with_judge(loopback)
        assert button(at, "Start the run").disabled is True
        assert loopback.asked == []
    assert f"is not allowed: have the operator add it to {SERVERS_VARIABLE}" in at.error[0].value
    with workbench.database.read() as session:
        assert len(list_runs(session)) == before


def test_a_server_that_does_not_answer_starts_nothing(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda asked: (500, {}, f"no {CANARY}".encode())) as loopback:
        monkeypatch.setenv(SERVERS_VARIABLE, origin_of(loopback))
        monkeypatch.setenv(KEYS_VARIABLE, f"{origin_of(loopback)}={CANARY}")
        at = page_with_judge(loopback)
        button(at, "Start the run").click().run()
        assert "The reward judge cannot be used: the server" in at.error[0].value
        assert "status 500" in at.error[0].value
    button(at, "Start the run").click().run()
    assert "no server answers at" in at.error[0].value
    assert CANARY not in text_of(at)


def test_a_form_left_as_it_is_keeps_every_option(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda asked: {"scores": [0.5]} if "images" in asked else says(asked)) as loopback:
        monkeypatch.setenv(SERVERS_VARIABLE, origin_of(loopback))
        server = {"url": loopback.url, "timeout": 7.5, "model": "seer", "batch_size": 3}
        settings = parse_settings({"rewards": [
            {"name": "judge", "server": server, "judge": {"style": "unified_reward"}, "weight": 0.0},
            {"name": "http", "label": "taste", "server": server},
            {"name": "vividness", "gate": 0.25},
            {"name": "clip_score", "weights": "apple/DFN5B-CLIP-ViT-H-14-378", "revision": "main"},
        ]})  # fmt: skip
        # The judge's style has no answer here that it would take as a score.
        monkeypatch.setattr("engine.servers.check.judge", lambda *_: 0.5)
        with workbench.database.write() as session:
            any_hub = Permissions(hub_models=("*",))
            run_id = create_run(session, name="served", settings=settings, permissions=any_hub).id
        at = open_page("new_run", like=run_id)
        assert not at.error
        button(at, "Start the run").click().run()
        assert not at.error, at.error
    with workbench.database.read() as session:
        assert list_runs(session)[0].id != run_id
    assert newest(workbench) == settings


def test_a_labelled_reward_may_be_used_twice(workbench: Workbench) -> None:
    at = open_page("new_run")
    assert not [found for found in at.toggle if found.label == "Compressibility (2)"]
    field(at.toggle, "Compressibility").set_value(True).run()
    labels = [found for found in at.text_input if found.label == "Label"]
    label = next(found for found in labels if "compressibility" in found.key)
    label.set_value("small").run()
    field(at.toggle, "Compressibility (2)").set_value(True).run()
    assert not at.error, at.error
    button(at, "Start the run").click().run()
    assert not at.error, at.error
    used = [reward.key for reward in newest(workbench).rewards if reward.name == "compressibility"]
    assert used == ["small", "compressibility"]


def test_functions_are_offered_where_the_operator_allows_them(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Your own function" not in [found.label for found in open_page("new_run").toggle]
    monkeypatch.setenv("PALATE_REWARD_FUNCTIONS", "true")
    st.cache_resource.clear()
    assert "Your own function" in [found.label for found in open_page("new_run").toggle]
