import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from engine.builtin import WEIGHTS
from engine.catalogue import EXPORT_INFO
from engine.events import CheckpointSaved
from engine.settings import RunSettings
from store import jobs, presence, results, runs
from store.config import Config
from store.database import Database
from store.permissions import Permissions
from store.prompt_sets import create_prompt_set, parse_prompts
from tests.installations import claim_run, queue_run, small_settings


def test_a_run_is_what_was_asked_for(either_database: Database) -> None:
    settings = small_settings(rewards=[{"name": "vividness", "weight": 0.3}, {"name": "composition"}])
    with either_database.write() as session:
        assert not runs.has_runs(session)
        prompt_set = create_prompt_set(session, "Mine", parse_prompts("a.txt", b"a"), "a.txt")
        run = runs.create_run(session, name=" Héllo ", settings=settings, prompt_set_id=prompt_set.id, is_demo=True)
    with either_database.read() as session:
        assert runs.has_runs(session)
        found = runs.get_run(session, run.id)
        assert found is not None
        assert found.settings == settings
        assert (found.name, found.is_demo, found.state, found.iterations) == ("Héllo", True, "queued", 12)
        assert (found.prompt_set_id, found.prompt_set_name, found.queue_position) == (prompt_set.id, "Mine", 1)
        assert runs.job_of(session, run.id) == found.job_id
        assert runs.get_run(session, "nothing") is None
        with pytest.raises(ValueError, match="There is no run"):
            runs.job_of(session, "nothing")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prompts": {"file": "/etc/passwd"}}, "upload a prompt set instead"),
        ({"prompts": {"evaluation_file": "/etc/passwd"}}, "upload a prompt set instead"),
        ({"model": {"folder": "/etc"}}, "model.folder names /etc, which cannot be used here"),
        ({"model": {"hub_id": "owner/name"}}, "none may be used here"),
        ({"model": {"start_from": "/etc/passwd"}}, "model.start_from names /etc/passwd, which cannot be used here"),
        ({"model": {"name": "flux"}}, "The model flux comes without weights"),
        ({"rewards": [{"name": "hpsv2", "weights": "/etc"}]}, "names /etc, which cannot be used here"),
        ({"rewards": [{"name": "function", "function": "os:getpid"}]}, "PALATE_REWARD_FUNCTIONS"),
    ],
)
def test_a_run_names_no_file_of_the_servers(database: Database, settings: dict[str, object], says: str) -> None:
    """Unless the operator permits it: tests/store/test_permissions.py."""
    with pytest.raises(ValueError, match=says), database.write() as session:
        runs.create_run(session, name="x", settings=RunSettings.model_validate(settings))


def test_a_run_keeps_the_whole_path_of_its_model(database: Database, tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS, tmp_path / "models" / "mine")
    settings, permissions = small_settings(model={"folder": "mine"}), Permissions(model_roots=(tmp_path / "models",))
    with database.write() as session:
        run = runs.create_run(session, name="x", settings=settings, permissions=permissions)
        assert runs.get_run(session, run.id).settings.model.folder == str(tmp_path / "models" / "mine")
    (tmp_path / "models" / "mine" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is not whole: vae/\*\.safetensors is missing"), database.write() as session:
        runs.create_run(session, name="x", settings=settings, permissions=permissions)


def test_a_prompt_set_that_is_gone(either_database: Database) -> None:
    with pytest.raises(ValueError, match="no longer there"), either_database.write() as session:
        runs.create_run(session, name="x", settings=small_settings(), prompt_set_id="gone")


def test_runs_are_listed_newest_first(either_database: Database) -> None:
    made = [queue_run(either_database)[0] for _ in range(3)]
    with either_database.read() as session:
        listed = runs.list_runs(session)
    assert sorted(run.id for run in listed) == sorted(made)
    assert [run.created_at for run in listed] == sorted((run.created_at for run in listed), reverse=True)


def test_an_export(
    either_database: Database, either_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, job_id = queue_run(either_database)
    lease = claim_run(either_database, either_config, job_id)
    with pytest.raises(ValueError, match="no checkpoint yet"), either_database.write() as session:
        runs.request_export(session, run_id)
    with either_database.write() as session:
        for step in (4, 8):
            saved = CheckpointSaved(time=1.0, step=step, path=f"checkpoints/step-{step:06d}", num_bytes=1)
            results.record_checkpoint(session, lease, saved)
    with pytest.raises(ValueError, match="no checkpoint of step 5"), either_database.write() as session:
        runs.request_export(session, run_id, step=5)
    with pytest.raises(ValueError, match="no export format 'floppy'"), either_database.write() as session:
        runs.request_export(session, run_id, format="floppy")
    with pytest.raises(ValueError, match="No model on the hub could be"), either_database.write() as session:
        runs.request_export(session, run_id, push="../mine")
    with pytest.raises(ValueError, match="no published names"), either_database.write() as session:
        monkeypatch.setitem(EXPORT_INFO, "kohya", replace(EXPORT_INFO["kohya"], models=frozenset()))
        runs.request_export(session, run_id, format="kohya")
    with either_database.write() as session:
        export = runs.request_export(session, run_id)
    with either_database.read() as session:
        assert [job.id for job in jobs.queued_jobs(session, "export")] == [export.job_id]
    export_lease = claim_run(either_database, either_config, export.job_id)
    assert export_lease.payload == {
        "step": 8, "format": "diffusers", "precision": "float32", "push": None, "public": False,
    }  # fmt: skip
    with either_database.write() as session:
        results.record_export(session, export_lease, path="runs/x/exports/a", num_bytes=7, report="fine")
        jobs.finish(session, export_lease)
    with either_database.read() as session:
        (found,) = results.exports_of(session, run_id)
        assert results.get_export(session, export.id) == found
        assert results.get_export(session, "nothing") is None
        assert (found.state, found.step, found.path, found.num_bytes, found.report) == (
            "done", 8, "runs/x/exports/a", 7, "fine",
        )  # fmt: skip
        assert [run.id for run in runs.list_runs(session)] == [run_id]


def test_workers_come_and_go(either_database: Database, either_config: Config) -> None:
    run_id, job_id = queue_run(either_database)
    claim_run(either_database, either_config, job_id)
    with either_database.write() as session:
        for name in ("a worker", "another", "another"):
            presence.worker_seen(session, name, host="h", device="cpu")
    with either_database.read() as session:
        listed = presence.list_workers(session)
    assert [(worker.name, worker.run_ids) for worker in listed] == [("a worker", (run_id,)), ("another", ())]
    assert all(0 <= worker.silent_seconds < 60 for worker in listed)
    with either_database.write() as session:
        presence.forget_silent_workers(session, 60)
        presence.worker_gone(session, "another")
        assert [worker.name for worker in presence.list_workers(session)] == ["a worker"]
        presence.forget_silent_workers(session, -1)
        assert presence.list_workers(session) == []


def test_the_operator_may_permit_functions(database: Database) -> None:
    settings = RunSettings.model_validate({"rewards": [{"name": "function", "function": "os:getpid"}]})
    with database.write() as session:
        runs.create_run(session, name="mine", settings=settings, permissions=Permissions(functions=True))
