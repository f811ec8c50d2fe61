"""The demo run: queued once, on a first start, so that the first page shows something alive."""

from __future__ import annotations

from engine.presets import PRESETS
from store.config import Config
from store.database import Database
from store.runs import create_run, has_runs, job_of
from workers.queue import ring

DEMO_PRESET = "builtin_balance"
DEMO_NAME = "Demo: livelier colours, same scenes"


def queue_demo(database: Database, config: Config) -> bool:
    """Queue the demo run if the database holds no runs yet; returns whether it did."""
    with database.write() as session:
        if has_runs(session):
            return False
        run = create_run(session, name=DEMO_NAME, settings=PRESETS[DEMO_PRESET].make(), is_demo=True)
        job_id = job_of(session, run.id)
    ring(config, job_id)
    return True
