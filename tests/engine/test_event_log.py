"""What of a killed process's events still holds."""

from __future__ import annotations

from pathlib import Path

from engine.event_log import EventLog
from engine.events import CheckpointSaved, Event, Finished, Message, Started, parse_event

SAVED = CheckpointSaved(time=1.0, step=2, path="checkpoints/step-000002", num_bytes=1)


def _events(run: Path) -> list[Event]:
    return [parse_event(line) for line in (run / "events.jsonl").read_text().splitlines()]


def _after_a_kill(run: Path, *written: Event, step: int) -> EventLog:
    """The log of a process that resumes from `step` after another that wrote these events and half a line."""
    lines = "".join(event.model_dump_json() + "\n" for event in written)
    (run / "events.jsonl").write_text(lines + '{"time": 1.0, "kind": "iter')
    return EventLog(run, keep_until=step)


def test_warnings_of_iterations_that_are_done_again_are_told_once(tmp_path: Path) -> None:
    start = Started(time=1.0, step=0, iterations=4, device="CPU", versions={})
    note = Message(time=1.0, text="One of five prompts is held out.")
    second, third = (Message(time=1.0, level="warning", text=f"Iteration {step}", step=step) for step in (2, 3))
    error = Message(time=1.0, level="error", text="The disk is full.")
    log = _after_a_kill(tmp_path, start, note, second, SAVED, third, error, step=2)
    log.close()
    assert _events(tmp_path) == log.kept == [start, note, second, SAVED, error]


def test_a_warning_that_its_checkpoint_remembers_stays_though_the_kill_came_before_the_checkpoints_event(
    tmp_path: Path,
) -> None:
    alarm = Message(time=1.0, level="warning", text="After iteration 2: the images grow alike.", step=2)
    log = _after_a_kill(tmp_path, alarm, step=2)
    checkpoint = tmp_path / "checkpoints" / "step-000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    log.tell_of(checkpoint, 2)
    log.close()
    kept, told = _events(tmp_path)
    assert kept == alarm
    assert told.model_dump(exclude={"time"}) == SAVED.model_dump(exclude={"time"}) | {"num_bytes": 2}


def test_a_checkpoint_is_told_of_once_and_by_its_own_run(tmp_path: Path) -> None:
    log = _after_a_kill(tmp_path, SAVED, step=2)
    log.tell_of(tmp_path / "checkpoints" / "step-000002", 2)
    log.tell_of(tmp_path / "an earlier folder of the run" / "checkpoints" / "step-000003", 3)
    log.close()
    assert _events(tmp_path) == [SAVED]


def test_nothing_holds_where_nothing_was_saved(tmp_path: Path) -> None:
    log = _after_a_kill(tmp_path, SAVED, Finished(time=1.0, step=2, outcome="failed"), step=0)
    log.close()
    assert _events(tmp_path) == []
