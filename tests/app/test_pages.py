"""Pages drawn without a browser: what they show, what their buttons do, what they say to mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import delete, select
from streamlit.testing.v1 import AppTest

from app import connection
from engine.catalogue import EXPORT_INFO
from engine.memory_advice import Change, changed
from engine.prompt_files import MAX_HELD_OUT
from store.prompt_sets import list_prompt_sets
from store.results import exports_of
from store.runs import get_run, list_runs
from store.tables import Export, Job, Sample, SampleStep
from tests.app.conftest import Workbench

MAIN = Path(__file__).parents[2] / "app" / "main.py"


def open_page(page: str = "", **query: str) -> AppTest:
    at = AppTest.from_file(str(MAIN), default_timeout=60).run()
    if page:
        at.switch_page(f"views/{page}.py")
        for name, value in query.items():
            at.query_params[name] = value
        at.run()
    assert not at.exception, at.exception
    return at


def text_of(at: AppTest) -> str:
    """All words of a page."""
    parts = [*at.markdown, *at.caption, *at.header, *at.subheader, *at.info, *at.error, *at.warning, *at.code]
    return "\n".join(str(part.value) for part in parts) + "\n".join(str(part.value) for part in at.get("html"))


def button(at: AppTest, label: str):
    return next(found for found in at.button if found.label == label)


def test_first_page_of_an_empty_workbench_says_what_to_do(empty_workbench: Workbench) -> None:
    at = open_page()
    assert "There are no runs yet" in at.info[0].value


def test_runs_are_listed_with_state_and_gain(workbench: Workbench) -> None:
    at = open_page()
    words = text_of(at)
    assert "5 runs, 2 active" in words
    for badge in ("Waiting", "Training", "Cancelled", "Failed", "Finished"):
        assert badge in words
    assert "Vividness 0." in words and "→" in words


def test_running_run(workbench: Workbench) -> None:
    at = open_page("run", id=workbench.ids["running"])
    assert at.header[0].value == "Demo: livelier colours, same scenes"
    words = text_of(at)
    assert "the base model → step 60" in words
    assert "All correct" in words
    assert button(at, "Stop").disabled is False
    assert "num_steps:" in words  # the settings as YAML


def charts_of(at: AppTest) -> list[dict]:
    return [json.loads(chart.proto.spec) for chart in at.get("vega_lite_chart")]


def titles_of(at: AppTest) -> list[str]:
    return [chart["title"]["text"].partition(",")[0] for chart in charts_of(at)]


def test_several_rewards_share_an_axis_until_the_raw_scores_are_asked_for(workbench: Workbench) -> None:
    at = open_page("run", id=workbench.ids["running"])
    together = "Change in standard deviations of the base model"
    assert titles_of(at) == [together, "Seconds an iteration"]
    assert "1 the standard deviation of its scores" in text_of(at)
    at.button_group(key="scores").set_value("Raw").run()
    assert not at.exception, at.exception
    assert titles_of(at) == ["Vividness", "Composition", "Seconds an iteration"]
    again = open_page("run", id=workbench.ids["running"], scores="Raw")
    assert titles_of(again)[0] == "Vividness", "the address keeps it"


def test_a_reward_alone_starts_in_its_own_units(workbench: Workbench) -> None:
    at = open_page("run", id=workbench.ids["done"])
    assert titles_of(at)[0] == "Vividness"
    at = open_page("run", id=workbench.ids["done"], scores="Standardised")
    assert titles_of(at)[0] == "Change in standard deviations of the base model"


def test_a_reward_without_a_spread_at_step_0_is_said_to_have_none(workbench: Workbench) -> None:
    run_id = workbench.ids["running"]
    with workbench.database.write() as session:
        for drawn in session.scalars(select(Sample).where(Sample.run_id == run_id, Sample.step == 0)):
            drawn.rewards = drawn.rewards | {"composition": 0.5}
    at = open_page("run", id=run_id)
    assert "Not shown: Composition" in text_of(at)
    assert titles_of(at)[0] == "Change in standard deviations of the base model"


def test_without_the_base_models_scores_there_is_no_switch(workbench: Workbench) -> None:
    run_id = workbench.ids["running"]
    with workbench.database.write() as session:
        session.execute(delete(Sample).where(Sample.run_id == run_id, Sample.step == 0))
        session.execute(delete(SampleStep).where(SampleStep.run_id == run_id, SampleStep.step == 0))
    at = open_page("run", id=run_id)
    assert titles_of(at) == ["Vividness", "Composition", "Seconds an iteration"]
    assert not at.get("button_group")


def test_stop_asks_the_worker(workbench: Workbench) -> None:
    run_id = workbench.ids["running"]
    at = open_page("run", id=run_id)
    button(at, "Stop").click().run()
    with workbench.database.read() as session:
        run = get_run(session, run_id)
    assert run is not None and run.cancel_requested
    assert button(at, "Stop").disabled is True


def test_failed_run_says_why_and_can_be_retried(workbench: Workbench) -> None:
    run_id = workbench.ids["failed"]
    at = open_page("run", id=run_id)
    assert "ran out of memory" in at.error[0].value
    assert "alloc_cpu.cpp" in text_of(at)
    button(at, "Retry").click().run()
    with workbench.database.read() as session:
        run = get_run(session, run_id)
    assert run is not None and run.state == "queued"


def test_a_run_that_filled_its_memory_is_offered_lighter_settings(workbench: Workbench) -> None:
    run_id = workbench.ids["failed"]
    at = open_page("run", id=run_id)
    assert "Less memory: fewer images at a time (`compute.micro_batch: 12`)." in text_of(at)
    button(at, "Retry with less memory").click().run()
    assert not at.exception and (at.query_params["like"], at.query_params["less"]) == (run_id, "memory")
    at = open_page("new_run", like=run_id, less="memory")
    assert "Changed, for less memory: fewer images at a time" in text_of(at)
    button(at, "Start the run").click().run()
    with workbench.database.read() as session:
        before, run = get_run(session, run_id), get_run(session, list_runs(session)[0].id)
    assert before is not None and run is not None and before.state == "failed"
    assert (run.name, run.state) == ("Big batches, less memory", "queued")
    assert run.settings == changed(before.settings, [Change("compute", "micro_batch", 12)])


def test_other_failures_are_offered_none(workbench: Workbench) -> None:
    run_id = workbench.ids["failed"]
    with workbench.database.write() as session:
        session.scalars(select(Job).where(Job.run_id == run_id)).one().error = "The prompts are gone."
    at = open_page("run", id=run_id)
    assert [found.label for found in at.button if found.label.startswith("Retry")] == ["Retry"]
    assert "Less memory" not in text_of(at)
    assert button(open_page("new_run", like=run_id, less="memory"), "Start the run").disabled is False


def test_unknown_run(workbench: Workbench) -> None:
    for query in ({"id": "0123456789ab"}, {"id": "' OR 1=1 --"}, {}):
        assert open_page("run", **query).header[0].value == "No such run"


def test_export_is_queued_and_a_done_one_is_offered(workbench: Workbench) -> None:
    run_id = workbench.ids["done"]
    at = open_page("run", id=run_id)
    button(at, "Export").click().run()
    with workbench.database.read() as session:
        exports = exports_of(session, run_id)
    assert sorted(export.state for export in exports) == ["done", "queued"]
    assert "Being made" in text_of(at)


def test_a_format_that_the_run_cannot_have_is_refused_in_words(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXPORT_INFO, "kohya", replace(EXPORT_INFO["kohya"], models=frozenset({"flux"})))
    at = open_page("run", id=workbench.ids["done"])
    formats = at.selectbox(key="export-format")
    assert formats.options == ["diffusers", "ComfyUI LoRA", "kohya LoRA", "Whole transformer", "Whole pipeline"]
    formats.select("kohya").run()
    assert "no published names for the layers of builtin" in at.warning[0].value
    assert button(at, "Export").disabled
    at.selectbox(key="export-format").select("comfyui").run()
    assert not at.warning
    button(at, "Export").click().run()
    with workbench.database.read() as session:
        exports = exports_of(session, workbench.ids["done"])
    assert {export.format for export in exports if export.state == "queued"} == {"comfyui"}


def test_an_export_is_sent_to_the_hub_where_the_operator_permits_it(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = workbench.ids["done"]
    assert not [field for field in open_page("run", id=run_id).text_input if field.key == "export-push"]
    monkeypatch.setenv("PALATE_HUB_PUSH", "org/*")
    connection.config.clear()
    at = open_page("run", id=run_id)
    at.selectbox(key="export-precision").select("float16").run()
    at.text_input(key="export-push").input("other/mine").run()
    button(at, "Export").click().run()
    assert "may be sent only to org/*" in at.toast[0].value
    at.text_input(key="export-push").input("org/mine").run()
    at.checkbox(key="export-public").check().run()
    button(at, "Export").click().run()
    with workbench.database.read() as session:
        (queued,) = (export for export in exports_of(session, run_id) if export.state == "queued")
        payload = session.get_one(Job, session.get_one(Export, queued.id).job_id).payload
    assert (payload["precision"], payload["push"], payload["public"]) == ("float16", "org/mine", True)


def test_preset_is_launched_as_it_is(workbench: Workbench) -> None:
    from engine.presets import PRESETS

    at = open_page("new_run")
    assert not at.error
    name = next(iter(PRESETS))
    button(at, "Start the run").click().run()
    with workbench.database.read() as session:
        newest = list_runs(session)[0]
        run = get_run(session, newest.id)
    assert run is not None
    assert (run.name, run.state) == (PRESETS[name].title, "queued")
    assert run.settings == PRESETS[name].make()


def test_mistakes_in_the_form_are_said_in_place(workbench: Workbench) -> None:
    at = open_page("new_run")
    for toggle in at.toggle:
        if toggle.value and not toggle.label.startswith("Advanced"):
            toggle.set_value(False)
    at.run()
    assert "Choose at least one reward." in at.error[0].value
    assert button(at, "Start the run").disabled is True


def test_window_longer_than_the_steps(workbench: Workbench) -> None:
    at = open_page("new_run")
    next(field for field in at.number_input if field.label.startswith("Window")).set_value(190).run()
    assert "The window has 190 steps" in at.error[0].value
    assert button(at, "Start the run").disabled is True


def test_advanced_text_is_validated(workbench: Workbench) -> None:
    at = open_page("new_run")
    next(toggle for toggle in at.toggle if toggle.label.startswith("Advanced")).set_value(True).run()
    area = at.text_area[0]
    assert "rewards:" in area.value
    area.set_value(area.value + "colour: red\n").run()
    assert "Unknown setting `colour`" in at.error[0].value
    at.text_area[0].set_value("iterations: 3\n").run()
    assert not at.error
    button(at, "Start the run").click().run()
    with workbench.database.read() as session:
        run = list_runs(session)[0]
    assert run.iterations == 3


def test_new_run_from_an_earlier_one(workbench: Workbench) -> None:
    at = open_page("new_run", like=workbench.ids["done"])
    assert next(field for field in at.number_input if field.label == "Iterations").value == 60


def test_prompt_set_is_shown(workbench: Workbench) -> None:
    at = open_page("prompts", set=workbench.ids["prompts"])
    words = text_of(at)
    assert "My scenes" in words
    assert "held out" in words


def upload(at: AppTest, name: str, data: bytes) -> AppTest:
    at.file_uploader[0].upload(name, data, "text/plain").run()
    return at


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("empty.txt", b"  \n", "is empty"),
        ("latin.txt", "caf\xe9\n".encode("latin-1"), "UTF-8"),
        ("table.csv", b"text,seed\na cat,1\n", "prompt"),
        ("list.jsonl", b'{"prompt": "a cat"}\n{oops\n', "line 2"),
        ("picture.png", b"\x89PNG", ".txt, .csv or .jsonl"),
    ],
)
def test_bad_files_are_refused_with_a_sentence(workbench: Workbench, name: str, data: bytes, sentence: str) -> None:
    at = upload(open_page("prompts"), name, data)
    assert sentence in at.error[0].value
    assert not any(found.label == "Keep this set" for found in at.button)


def test_good_file_is_previewed_and_kept(workbench: Workbench) -> None:
    data = b"a red circle\na blue square\na red circle\n" + b"".join(b"a cat %d\n" % n for n in range(600))
    at = upload(open_page("prompts"), "cats.txt", data)
    words = text_of(at)
    assert "602 prompts" in words
    assert "1 duplicate left out" in words
    assert f"{MAX_HELD_OUT} held out" in words
    button(at, "Keep this set").click().run()
    with workbench.database.read() as session:
        kept = list_prompt_sets(session)[0]
    assert (kept.name, kept.num_prompts) == ("cats", 602)
