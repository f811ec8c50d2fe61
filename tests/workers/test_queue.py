import base64
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from store.config import Config
from tests.installations import make_config
from workers.celery_app import SETTINGS, TASKS, broker_folder
from workers.queue import ring


@pytest.mark.parametrize(("job_id", "queue"), [("train-0a", "train"), ("export-0a", "light")])
def test_a_bell_is_one_whole_message_with_a_job_id(config: Config, job_id: str, queue: str) -> None:
    assert ring(config, job_id)
    (path,) = (broker_folder(config) / "queue").iterdir()
    assert path.name.endswith(f".{queue}.msg")
    message = json.loads(path.read_bytes())
    assert message["content-type"] == "application/json"
    assert json.loads(base64.b64decode(message["body"]))[0] == [job_id]
    assert list((broker_folder(config) / "outbox").iterdir()) == []


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "amqp://guest:guest@127.0.0.1:1//"])
def test_a_broker_that_is_away_is_no_error(tmp_path: Path, url: str) -> None:
    config = make_config(tmp_path, broker_url=SecretStr(url))
    begun = time.monotonic()
    assert not ring(config, "train-0a")
    assert time.monotonic() - begun < 20


def test_an_unwritable_broker_folder_is_no_error(config: Config) -> None:
    config.home.mkdir()
    (config.home / "broker").write_text("a file where the folder should be")
    assert not ring(config, "train-0a")


def test_every_task_has_its_route_and_every_route_its_queue() -> None:
    assert set(SETTINGS["task_routes"]) == set(TASKS.values())
    assert {route["queue"] for route in SETTINGS["task_routes"].values()} == set(SETTINGS["task_queues"])


def test_the_door_opens_on_nothing_else(project_root: Path) -> None:
    program = (
        "import sys, workers.queue; "
        "sys.exit(any(name in sys.modules for name in ('workers.supervisor', 'workers.worker', 'torch')))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=project_root, check=True, timeout=60)
