"""Trains several runs as one rank: `rank_program.py JOBS.json`, started by engine/launch.py.

A job has settings, the run's folder `out`, and a `checkpoint` to go on from, or none. The main rank leaves its events.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from engine.artifacts.checkpoint import load_checkpoint
from engine.events import Event
from engine.ranks import join_ranks
from engine.settings import RunSettings
from engine.train import train


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    joined = join_ranks(RunSettings.model_validate(jobs[0]["settings"]).compute)
    for job in jobs:
        settings, out = RunSettings.model_validate(job["settings"]), Path(job["out"])
        ranks = dataclasses.replace(joined, sharded=settings.compute.sharding == "fsdp")
        checkpoint = load_checkpoint(Path(job["checkpoint"])) if job["checkpoint"] else None
        events: list[Event] = []
        train(settings, out, events.append, checkpoint=checkpoint, ranks=ranks)
        if ranks.is_main:
            (out / "events.jsonl").write_text("".join(event.model_dump_json() + "\n" for event in events))
    joined.leave()


if __name__ == "__main__":
    main()
