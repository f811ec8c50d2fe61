"""A FLUX.1 of the true classes, in small: chosen on the page, trained by a worker, shown, and exported."""

from __future__ import annotations

import threading

import pytest
import torch
from safetensors import safe_open

from store import files
from store.jobs import queued_jobs
from store.prompt_sets import create_prompt_set, parse_prompts
from store.results import exports_of, metrics_of, sample_steps_of
from store.runs import get_run, list_runs
from tests.app.conftest import Workbench
from tests.app.test_model_form import field
from tests.app.test_pages import button, open_page, text_of
from tests.engine.models.tiny_flux import flux
from tests.installations import claim_run
from workers.supervisor import Supervisor


def work(workbench: Workbench, kind: str) -> None:
    """What a worker does with the one job of that kind that waits."""
    with workbench.database.read() as session:
        (job,) = queued_jobs(session, kind)
    lease = claim_run(workbench.database, workbench.config, job.id)
    Supervisor(workbench.config, workbench.database, lease, threading.Event()).run()


def test_from_the_page_to_the_export(empty_workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    workbench = empty_workbench
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = workbench.config.model_roots[0] / "flux-in-small"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flux("dev").save_pretrained(folder)
    with workbench.database.write() as session:
        prompts = parse_prompts("scenes.txt", b"a red circle\na blue star\na green square\na white star\n")
        prompt_set = create_prompt_set(session, "Scenes", prompts, "scenes.txt").id

    at = open_page("new_run", prompts=prompt_set)
    field(at.selectbox, "Model").select("flux").run()
    assert field(at.selectbox, "Pipeline folder").value == str(folder)
    field(at.selectbox, "Precision").select("float32")  # no worker is known, so a GPU is hoped for
    for label, number in (
        ("Pixels a side", 32), ("Iterations", 2), ("Prompts an iteration", 2), ("Images a prompt", 2),
        ("Denoising steps", 6), ("Iterations between samples", 2), ("LoRA rank", 4), ("Learning rate", 1e-2),
    ):  # fmt: skip
        field(at.number_input, label).set_value(number)
    at.run()
    assert not at.error, at.error
    button(at, "Start the run").click().run()
    work(workbench, "train")

    with workbench.database.read() as session:
        run_id = list_runs(session)[0].id
        run = get_run(session, run_id)
        assert run is not None and (run.state, run.step, run.error) == ("done", 2, None)
        assert (run.settings.model.name, run.settings.model.folder) == ("flux", str(folder))
        assert [row.step for row in metrics_of(session, run_id)] == [1, 2]
        assert [row.step for row in sample_steps_of(session, run_id)] == [0, 2]

    at = open_page("run", id=run_id)
    assert "FLUX.1 (dev, Krea, schnell), flux-in-small" in text_of(at)
    assert "the base model → step 2" in text_of(at)
    button(at, "Export").click().run()
    work(workbench, "export")
    with workbench.database.read() as session:
        (export,) = exports_of(session, run_id)
    assert export.state == "done", export.error
    assert "draws the checkpoint's images" in (export.report or "")
    with safe_open(files.resolve(workbench.config, export.path or ""), "pt") as file:
        assert "transformer.transformer_blocks.0.attn.to_q.lora_A.weight" in set(file.keys())
