import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from engine.builtin import WEIGHTS
from engine.prompt_files import read_prompts
from engine.settings_text import read_settings
from store import files, jobs, results, runs
from store.config import Config
from store.database import Database
from store.jobs import Fenced, Lease
from store.permissions import Permissions
from store.prompt_sets import create_prompt_set, parse_prompts
from store.runs import RunDetail
from store.schema import upgrade
from tests.installations import claim_run, fake_engine, make_config, queue_run, small_settings
from tests.workers.fake_engine import reward_at
from workers.launch import prepare_export
from workers.supervisor import Supervisor


class Installation:
    """A database and a config whose fake engine takes the given flags."""

    def __init__(self, home: Path, *flags: str, **changes: Any) -> None:
        self.config: Config = make_config(home, engine_command=fake_engine(*flags), **changes)
        upgrade(self.config)
        self.database = Database(self.config)

    def with_flags(self, *flags: str) -> "Installation":
        again = Installation.__new__(Installation)
        again.config = self.config.model_copy(update={"engine_command": fake_engine(*flags)})
        again.database = self.database
        return again

    def supervise(self, job_id: str, draining: threading.Event | None = None) -> Lease:
        lease = claim_run(self.database, self.config, job_id)
        Supervisor(self.config, self.database, lease, draining or threading.Event()).run()
        return lease

    def detail(self, run_id: str) -> RunDetail:
        with self.database.read() as session:
            found = runs.get_run(session, run_id)
        assert found is not None
        return found

    def log(self, run_id: str) -> str:
        with self.database.read() as session:
            return "\n".join(f"{line.level}: {line.text}" for line in results.log_tail(session, run_id))

    def after_step(self, run_id: str, step: int, act: Callable[[], None]) -> threading.Thread:
        """Do something from another thread once the run has come to a step."""

        def wait() -> None:
            end = time.monotonic() + 60
            while self.detail(run_id).step < step and time.monotonic() < end:
                time.sleep(0.02)
            act()

        thread = threading.Thread(target=wait)
        thread.start()
        return thread


def assert_whole(installation: Installation, run_id: str, num_steps: int = 12) -> None:
    """Every row of a finished run exactly once, with the right figures, and every file a row names there."""
    with installation.database.read() as session:
        metrics = results.metrics_of(session, run_id)
        drawn = results.sample_steps_of(session, run_id)
        images = results.samples_of(session, run_id)
        checkpoints = results.checkpoints_of(session, run_id)
    assert [row.step for row in metrics] == list(range(1, num_steps + 1))
    assert [row.rewards["composition"] for row in metrics] == [reward_at(row.step) for row in metrics]
    assert [row.step for row in drawn] == list(range(0, num_steps + 1, 3))
    assert [(row.step, row.index) for row in images] == [(row.step, index) for row in drawn for index in (0, 1)]
    for path in (*(row.path for row in images), *(row.path for row in checkpoints)):
        assert files.resolve(installation.config, path).exists()
    assert checkpoints[0].step == num_steps


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_a_run_from_beginning_to_end(home: Path) -> None:
    installation = Installation(home)
    run_id, job_id = queue_run(installation.database)
    installation.supervise(job_id)
    found = installation.detail(run_id)
    assert (found.state, found.step, found.error, found.owner) == ("done", 12, None, None)
    assert found.finished_at is not None
    assert_whole(installation, run_id)
    assert "info: A worker starts the run." in installation.log(run_id)


def test_a_worker_reads_no_model_that_its_operator_does_not_list(home: Path, tmp_path: Path) -> None:
    """The list may be another worker's, or have changed, or a link may lead elsewhere since the launch."""
    installation = Installation(home)
    model = tmp_path / "models" / "one"
    shutil.copytree(WEIGHTS, model)
    permissions = Permissions(model_roots=(tmp_path / "models",))
    with installation.database.write() as session:
        settings = small_settings(model={"folder": str(model)})
        run_id = runs.create_run(session, name="x", settings=settings, permissions=permissions).id
        job_id = runs.job_of(session, run_id)
    installation.supervise(job_id)
    found = installation.detail(run_id)
    assert (found.state, found.attempt) == ("failed", 1)
    assert found.error is not None and "outside the model folders of this workbench" in found.error

    installation.config = installation.config.model_copy(update={"model_folders": (tmp_path / "models",)})
    with installation.database.write() as session:
        runs.retry_run(session, run_id)
    installation.supervise(job_id)
    assert installation.detail(run_id).state == "done"


def test_prompts_of_a_set_reach_the_engine(home: Path) -> None:
    installation = Installation(home)
    with installation.database.write() as session:
        parsed = parse_prompts("a.txt", "\n".join(f"prompt é {i}" for i in range(10)).encode())
        prompt_set = create_prompt_set(session, "Mine", parsed, "a.txt")
    run_id, job_id = queue_run(installation.database, prompt_set_id=prompt_set.id)
    installation.supervise(job_id)
    settings = read_settings(files.run_folder(installation.config, run_id) / "settings.yaml")
    assert settings.prompts.file is not None
    assert settings.prompts.evaluation_file is not None
    assert read_prompts(Path(settings.prompts.file)).prompts == tuple(f"prompt é {i}" for i in range(8))
    assert read_prompts(Path(settings.prompts.evaluation_file)).prompts == ("prompt é 8", "prompt é 9")
    with installation.database.read() as session:
        assert [row.prompt for row in results.samples_of(session, run_id, step=0)] == ["prompt é 8", "prompt é 9"]


def test_a_refusal_is_shown_as_said_and_not_tried_again(home: Path) -> None:
    installation = Installation(home, "--refuse", "The composition reward cannot judge `a dog`; use another reward.")
    run_id, job_id = queue_run(installation.database)
    installation.supervise(job_id)
    found = installation.detail(run_id)
    assert (found.state, found.error) == ("failed", "The composition reward cannot judge `a dog`; use another reward.")


def test_a_crash_is_tried_again_from_the_checkpoint(home: Path) -> None:
    installation = Installation(home, "--crash-at", "7")
    run_id, job_id = queue_run(installation.database)
    installation.supervise(job_id)
    found = installation.detail(run_id)
    assert (found.state, found.attempt, found.step) == ("queued", 1, 6)
    assert "error: RuntimeError: the fake engine crashed" in installation.log(run_id)
    installation.with_flags().supervise(job_id)
    assert installation.detail(run_id).state == "done"
    assert "takes the run on from the checkpoint of step 4 (attempt 2)" in installation.log(run_id)
    assert_whole(installation, run_id)


def test_a_poison_run_fails_after_three_attempts(home: Path) -> None:
    installation = Installation(home, "--crash-at", "2")
    run_id, job_id = queue_run(installation.database)
    for _ in range(3):
        installation.supervise(job_id)
    found = installation.detail(run_id)
    assert (found.state, found.attempt) == ("failed", 3)
    assert found.error is not None
    assert "crashed: it ended with exit code 1" in found.error
    assert "the fake engine crashed" in found.error


@pytest.mark.parametrize(
    ("flag", "says"), [("--leave-at", "without saying that it had finished"), ("--tear-at", "ended with exit code 1")]
)
def test_an_end_without_a_finished_record_is_a_failure(home: Path, flag: str, says: str) -> None:
    installation = Installation(home, flag, "3")
    run_id, job_id = queue_run(installation.database)
    for _ in range(3):
        installation.supervise(job_id)
    found = installation.detail(run_id)
    assert found.state == "failed"
    assert found.error is not None
    assert says in found.error


def test_cancel_while_running_keeps_a_checkpoint(home: Path) -> None:
    installation = Installation(home, "--delay", "0.1")
    run_id, job_id = queue_run(installation.database, iterations=500)

    def cancel() -> None:
        with installation.database.write() as session:
            runs.request_cancel(session, run_id)

    asking = installation.after_step(run_id, 2, cancel)
    installation.supervise(job_id)
    asking.join()
    found = installation.detail(run_id)
    assert found.state == "cancelled"
    assert 2 <= found.step < 500
    with installation.database.read() as session:
        assert results.checkpoints_of(session, run_id)[0].step == found.step


def test_an_engine_deaf_to_sigterm_is_killed_after_the_grace(home: Path) -> None:
    installation = Installation(home, "--delay", "0.1", "--ignore-sigterm", stop_grace_seconds=0.5)
    run_id, job_id = queue_run(installation.database, iterations=5000)

    def cancel() -> None:
        with installation.database.write() as session:
            runs.request_cancel(session, run_id)

    asking = installation.after_step(run_id, 1, cancel)
    installation.supervise(job_id)
    asking.join()
    assert installation.detail(run_id).state == "cancelled"


def test_a_worker_told_to_stop_gives_the_run_back_free_of_charge(home: Path) -> None:
    installation = Installation(home, "--delay", "0.1")
    run_id, job_id = queue_run(installation.database, iterations=150)
    draining = threading.Event()
    asking = installation.after_step(run_id, 2, draining.set)
    installation.supervise(job_id, draining)
    asking.join()
    found = installation.detail(run_id)
    assert (found.state, found.attempt) == ("queued", 0)
    assert 2 <= found.step < 150
    installation.with_flags("--delay", "0").supervise(job_id)
    assert installation.detail(run_id).state == "done"
    assert_whole(installation, run_id, num_steps=150)


def test_a_lost_lease_ends_the_engine_and_writes_nothing_more(home: Path) -> None:
    installation = Installation(home, "--delay", "0.1")
    run_id, job_id = queue_run(installation.database, iterations=5000)
    lease = claim_run(installation.database, installation.config, job_id)

    def take_over() -> None:
        with installation.database.write() as session:
            assert jobs.heartbeat(session, lease, -1.0) is not None
            assert jobs.reap(session) == [job_id]

    taking = installation.after_step(run_id, 2, take_over)
    with pytest.raises(Fenced):
        Supervisor(installation.config, installation.database, lease, threading.Event()).run()
    taking.join()
    found = installation.detail(run_id)
    assert found.state == "queued"
    time.sleep(0.5)
    assert installation.detail(run_id).step == found.step


def test_checkpoints_of_earlier_epochs_go_once_newer_ones_are_there(home: Path) -> None:
    installation = Installation(home, "--crash-at", "9")
    run_id, job_id = queue_run(installation.database, checkpoints={"every": 2, "keep": 1})
    installation.supervise(job_id)
    installation.with_flags().supervise(job_id)
    with installation.database.read() as session:
        kept = results.checkpoints_of(session, run_id)
    assert all(row.epoch == 2 for row in kept)
    assert kept[0].step == 12
    assert not (files.epoch_folder(installation.config, run_id, 1) / "checkpoints" / "step-000008").exists()


def test_a_checkpoint_that_is_gone_is_not_offered(home: Path) -> None:
    installation = Installation(home, "--crash-at", "9")
    run_id, job_id = queue_run(installation.database)
    installation.supervise(job_id)
    with installation.database.read() as session:
        newest, older = results.checkpoints_of(session, run_id)
    folder = files.resolve(installation.config, newest.path)
    (folder / "manifest.json").unlink()
    folder.rmdir()
    installation.with_flags().supervise(job_id)
    assert f"from the checkpoint of step {older.step}" in installation.log(run_id)
    assert_whole(installation, run_id)


def test_an_engine_that_cannot_be_started(home: Path) -> None:
    installation = Installation(home)
    run_id, job_id = queue_run(installation.database)
    broken = installation.with_flags()
    broken.config = installation.config.model_copy(update={"engine_command": ("/no/such/python",)})
    for _ in range(3):
        broken.supervise(job_id)
    found = installation.detail(run_id)
    assert (found.state, found.error) == ("failed", "The worker met a fault: No such file or directory.")


def test_an_export(home: Path) -> None:
    installation = Installation(home)
    run_id, job_id = queue_run(installation.database)
    installation.supervise(job_id)
    with installation.database.write() as session:
        export = runs.request_export(session, run_id, step=8)
    installation.supervise(export.job_id)
    with installation.database.read() as session:
        (found,) = results.exports_of(session, run_id)
    assert (found.state, found.num_bytes, found.report) == ("done", 22, "Exported step 8 as diffusers.")
    assert found.path is not None
    assert files.resolve(installation.config, found.path).read_bytes() == b"not really safetensors"
    assert installation.detail(run_id).state == "done"


def test_an_export_is_sent_where_the_operator_permits_it(home: Path) -> None:
    installation = Installation(home, hub_push=("org/*",))
    run_id, job_id = queue_run(installation.database)
    installation.supervise(job_id)
    with installation.database.write() as session:
        sent = runs.request_export(session, run_id, precision="bfloat16", push="org/mine", public=True)
        refused = runs.request_export(session, run_id, push="other/mine")
    lease = claim_run(installation.database, installation.config, job_id=sent.job_id)
    command = prepare_export(installation.config, installation.database, lease).command
    assert command[-6:] == ("--dtype", "bfloat16", "--push", "org/mine", "--push-last", "--public")
    assert command[command.index("--out") + 1].endswith("/pytorch_lora_weights.zip")
    installation.supervise(refused.job_id)
    with installation.database.read() as session:
        errors = {export.error for export in results.exports_of(session, run_id)}
    assert any(error and "may be sent only to org/*, not to other/mine" in error for error in errors)


def test_an_export_that_is_refused(home: Path) -> None:
    installation = Installation(home)
    run_id, job_id = queue_run(installation.database)
    installation.supervise(job_id)
    with installation.database.write() as session:
        export = runs.request_export(session, run_id)
    installation.with_flags("--refuse", "The file would differ from the run.").supervise(export.job_id)
    with installation.database.read() as session:
        (found,) = results.exports_of(session, run_id)
    assert (found.state, found.error, found.path) == ("failed", "The file would differ from the run.", None)


def test_an_export_that_the_hub_refuses_is_here_all_the_same(home: Path) -> None:
    installation = Installation(home, hub_push=("org/*",))
    run_id, job_id = queue_run(installation.database)
    installation.supervise(job_id)
    with installation.database.write() as session:
        export = runs.request_export(session, run_id, push="org/mine")
    installation.with_flags("--refuse-push", "The hub does not know the token.").supervise(export.job_id)
    with installation.database.read() as session:
        (found,) = results.exports_of(session, run_id)
    assert (found.state, found.error) == ("failed", "The hub does not know the token.")
    assert found.report.startswith("Exported step") and found.path is not None
    assert files.resolve(installation.config, found.path).read_bytes() == b"not really safetensors"


def test_an_export_of_a_checkpoint_that_is_gone(home: Path) -> None:
    installation = Installation(home)
    run_id, job_id = queue_run(installation.database)
    installation.supervise(job_id)
    with installation.database.write() as session:
        export = runs.request_export(session, run_id, step=4)
    lease = claim_run(installation.database, installation.config, job_id=export.job_id)
    with installation.database.write() as session:
        results.forget_checkpoints(session, lease, [4])
        jobs.release(session, lease)
    installation.supervise(export.job_id)
    with installation.database.read() as session:
        (found,) = results.exports_of(session, run_id)
    assert found.state == "failed"
    assert found.error is not None
    assert "checkpoint of step 4 is no longer there" in found.error


def test_a_secret_is_in_no_row_log_or_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "canary-3f1c"
    monkeypatch.setenv("PALATE_BROKER_URL", f"redis://:{canary}@127.0.0.1:1/0")
    installation = Installation(
        home, "--crash-at", "5", broker_url=SecretStr(f"redis://:{canary}@127.0.0.1:1/0")
    )
    _, job_id = queue_run(installation.database)
    installation.supervise(job_id)
    installation.with_flags().supervise(job_id)
    installation.database.dispose()
    holding = [path for path in home.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]
    assert holding == []
    assert list(home.rglob("events.jsonl"))
