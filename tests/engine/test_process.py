"""The engine as a process: what it leaves in the run's folder, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import process
from engine.events import CheckpointSaved, Event, Finished, IterationDone, Message, SamplesDrawn, Started, parse_event
from engine.requests import EvaluationRequest, GenerationRequest
from engine.settings import RunSettings
from engine.settings_text import read_settings


def events_of(out: Path) -> list[Event]:
    return [parse_event(line) for line in (out / "events.jsonl").read_text().splitlines()]


def write_settings(settings: RunSettings, folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(settings.to_yaml())
    return path


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the test's own process as it is: no end with its parent, no signal handlers."""
    monkeypatch.setattr(process, "end_with_parent", lambda: None)
    monkeypatch.setattr(process.signal, "signal", lambda *_: None)


def train(settings: RunSettings, tmp_path: Path, *more: str) -> int:
    return process.main(
        ["train", "--settings", str(write_settings(settings, tmp_path)), "--out", str(tmp_path / "out"), *more]
    )


def test_a_run_leaves_what_is_needed_to_repeat_it(tiny_settings: RunSettings, tmp_path: Path) -> None:
    assert train(tiny_settings, tmp_path) == 0
    out = tmp_path / "out"
    assert read_settings(out / "settings.yaml") == tiny_settings
    result = json.loads((out / "result.json").read_text())
    assert (result["outcome"], result["step"], result["seed"]) == ("completed", 4, 3)
    assert result["versions"]["torch"]
    assert result["held_out"]["last"]["step"] == 4
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"step-000002", "step-000004"}
    assert (out / "checkpoints" / "step-000004" / "manifest.json").is_file()
    assert isinstance(events_of(out)[-1], Finished)


def test_resuming_continues_the_event_log_without_doubles(tiny_settings: RunSettings, tmp_path: Path) -> None:
    assert train(tiny_settings, tmp_path) == 0
    out = tmp_path / "out"
    # As after a kill in iteration 4: rows past the newest checkpoint, and half a line.
    (out / "checkpoints" / "step-000004").rename(tmp_path / "lost")
    lines = (out / "events.jsonl").read_text().splitlines()
    (out / "events.jsonl").write_text("\n".join(lines[:9]) + '\n{"time": 1.0, "kind": "iter')
    assert train(tiny_settings, tmp_path, "--resume") == 0
    events = events_of(out)
    assert [event.step for event in events if isinstance(event, IterationDone)] == [1, 2, 3, 4]
    assert [event.step for event in events if isinstance(event, SamplesDrawn)] == [0, 2, 4]
    assert [event.step for event in events if isinstance(event, Started)] == [0, 2]
    for name in ("adapter.safetensors", "optimiser.safetensors"):
        resumed = (out / "checkpoints" / "step-000004" / name).read_bytes()
        assert resumed == (tmp_path / "lost" / name).read_bytes()


def test_a_checkpoint_that_a_kill_came_too_early_to_tell_of_is_told_on_resuming(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    assert train(tiny_settings, tmp_path) == 0
    out = tmp_path / "out"
    straight = events_of(out)
    # As after a kill between the checkpoint of step 2 and its event.
    shutil.rmtree(out / "checkpoints" / "step-000004")
    lines = (out / "events.jsonl").read_text().splitlines(keepends=True)
    told = next(place for place, event in enumerate(straight) if isinstance(event, CheckpointSaved))
    (out / "events.jsonl").write_text("".join(lines[:told]))
    assert train(tiny_settings, tmp_path, "--resume") == 0
    saved = [event for event in straight if isinstance(event, CheckpointSaved)]
    again = [event for event in events_of(out) if isinstance(event, CheckpointSaved)]
    assert [(event.step, event.path) for event in again] == [(event.step, event.path) for event in saved]
    assert again[0].num_bytes == saved[0].num_bytes


def test_a_longer_run_may_go_on_from_a_shorter_one(tiny_settings: RunSettings, tmp_path: Path) -> None:
    assert train(tiny_settings, tmp_path) == 0
    longer = RunSettings.model_validate(tiny_settings.model_dump() | {"iterations": 5})
    assert train(longer, tmp_path, "--resume") == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["step"] == 5


def test_other_settings_cannot_go_on(
    tiny_settings: RunSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_settings, tmp_path) == 0
    other = RunSettings.model_validate(tiny_settings.model_dump() | {"seed": 4})
    assert train(other, tmp_path, "--resume") == process.MISTAKE
    assert "other settings (seed)" in capsys.readouterr().err


def test_a_folder_with_a_run_is_not_overwritten(
    tiny_settings: RunSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_settings, tmp_path) == 0
    before = (tmp_path / "out" / "events.jsonl").read_bytes()
    assert train(tiny_settings, tmp_path) == process.MISTAKE
    assert "already holds a run; add --resume" in capsys.readouterr().err
    assert (tmp_path / "out" / "events.jsonl").read_bytes() == before


def test_a_folder_in_which_nothing_was_trained_is_used_again(
    tiny_settings: RunSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_settings.model.model_copy(update={"folder": str(tmp_path / "absent")})
    assert train(tiny_settings.model_copy(update={"model": model}), tmp_path) == process.MISTAKE
    events = tmp_path / "out" / "events.jsonl"
    failed = events.read_text()
    assert "absent" in capsys.readouterr().err and "absent" in failed
    # A start that has said nothing of a mistake may still be at work; and a checkpoint is never given up.
    started = Started(time=0.0, step=0, iterations=4, device="cpu", versions={}).model_dump_json() + "\n"
    for told, checkpoint in ((started, ""), (failed + started, ""), (failed, "step-000002"), ("", ""), ("half", "")):
        events.write_text(told)
        if checkpoint:
            (tmp_path / "out" / "checkpoints" / checkpoint).mkdir(parents=True)
        assert train(tiny_settings, tmp_path) == process.MISTAKE
        assert "already holds a run" in capsys.readouterr().err and events.read_text() == told
        if checkpoint:
            (tmp_path / "out" / "checkpoints" / checkpoint).rmdir()
    events.write_text(failed)
    assert train(tiny_settings, tmp_path) == 0
    assert "absent" not in events.read_text()
    assert events_of(tmp_path / "out")[-1].kind == "finished"


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tiny_settings: RunSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_settings, tmp_path) == 0
    checkpoints = tmp_path / "out" / "checkpoints"
    damaged = checkpoints / "step-000004" / "adapter.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    again = ["--resume-from", str(checkpoints / "step-000004"), "--resume-from", str(checkpoints / "step-000002")]
    assert train(tiny_settings, tmp_path, *again) == 0
    assert "Passed over a checkpoint" in capsys.readouterr().err
    started = [event for event in events_of(tmp_path / "out") if isinstance(event, Started)]
    assert started[-1].step == 2


def test_a_prompt_file_that_is_gone_is_a_mistake_with_a_sentence(
    tiny_settings: RunSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").unlink()
    assert train(tiny_settings, tmp_path) == process.MISTAKE
    error = capsys.readouterr().err
    assert "prompts.txt cannot be read" in error
    assert "Traceback" not in error
    message = events_of(tmp_path / "out")[-1]
    assert isinstance(message, Message)
    assert message.level == "error"


def test_a_full_disk_keeps_the_old_checkpoint_and_says_so(
    tiny_settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.fsync
    calls = 0

    def fills_up(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fills_up)
    assert train(tiny_settings, tmp_path) == process.MISTAKE
    monkeypatch.undo()
    monkeypatch.setattr(process, "end_with_parent", lambda: None)
    monkeypatch.setattr(process.signal, "signal", lambda *_: None)
    assert "disk" in capsys.readouterr().err.lower()
    checkpoints = tmp_path / "out" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-000002"]
    assert train(tiny_settings, tmp_path, "--resume") == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["outcome"] == "completed"


def test_drawing_and_scoring_by_request(
    tiny_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run()
    capsys.readouterr()
    drawing = GenerationRequest(run=run, out=tmp_path / "images", prompts=("a red star", "a blue star"))
    assert process.main(["generate", "--request", drawing.model_dump_json()]) == 0
    assert capsys.readouterr() == ("run, step 2: 2 images\n", "")
    assert {path.name for path in drawing.out.iterdir()} == {"000.png", "001.png", "generation.json"}

    scoring = EvaluationRequest(run=run, out=tmp_path / "evaluation", against="base")
    assert process.main(["evaluate", "--request", scoring.model_dump_json()]) == 0
    assert capsys.readouterr() == ("run, step 2: 1 images\nbase model: 1 images\n", "")
    assert {path.name for path in scoring.out.iterdir()} == {"evaluated", "against", "grid.png", "evaluation.json"}

    for command, request in (("generate", drawing), ("evaluate", scoring)):
        assert process.main([command, "--request", request.model_dump_json()]) == process.MISTAKE
        said = capsys.readouterr().err
        assert "already holds" in said
        assert len(said.splitlines()) == 1


def start(settings: RunSettings, tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    """A real engine process that trains in the folder `out`."""
    command = [sys.executable, "-m", "engine.process", "train", "--settings", str(write_settings(settings, tmp_path))]
    return subprocess.Popen([*command, "--out", str(tmp_path / "out"), *more], stderr=subprocess.PIPE, text=True)


def wait_for_iteration(engine: subprocess.Popen[str], out: Path, step: int = 1) -> None:
    deadline = time.monotonic() + 120
    while not ((out / "events.jsonl").exists() and steps_of(out)[-1:] >= [step]):
        assert engine.poll() is None, engine.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def steps_of(out: Path) -> list[int]:
    """The iterations that the events tell of, but for a line that is being written."""
    lines = (out / "events.jsonl").read_text().rpartition("\n")[0].splitlines()
    return [event.step for event in map(parse_event, lines) if isinstance(event, IterationDone)]


def stop(engine: subprocess.Popen[str], out: Path) -> Finished:
    """Ask an engine to stop, and give its last word."""
    engine.send_signal(signal.SIGTERM)
    error = engine.communicate(timeout=60)[1]
    assert engine.returncode == 0, error
    finished = events_of(out)[-1]
    assert isinstance(finished, Finished)
    assert finished.outcome == "stopped"
    return finished


def test_a_termination_signal_saves_a_checkpoint_and_the_run_goes_on(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    rare = {"evaluation": {"every": 1000, "num_prompts": 2, "num_steps": 2}, "checkpoints": {"every": 1000}}
    long = RunSettings.model_validate(tiny_settings.model_dump() | rare | {"iterations": 2000})
    out = tmp_path / "out"
    engine = start(long, tmp_path)
    wait_for_iteration(engine, out)
    finished = stop(engine, out)
    shorter = RunSettings.model_validate(long.model_dump() | {"iterations": finished.step + 1})
    assert train(shorter, tmp_path, "--resume") == 0
    assert steps_of(out) == list(range(1, finished.step + 2))


def runs(pid: str) -> bool:
    """Whether a process is neither gone nor dead and waiting to be asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_several_processes_end_with_the_one_that_started_them_and_stop_when_it_is_asked_to(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    often = {"evaluation": {"every": 1000, "num_prompts": 2, "num_steps": 2}, "checkpoints": {"every": 1}}
    long = RunSettings.model_validate(tiny_settings.model_dump() | often | {"iterations": 2000})
    out = tmp_path / "out"
    engine = start(long, tmp_path, "--processes", "2")
    wait_for_iteration(engine, out, 2)
    ranks = Path(f"/proc/{engine.pid}/task/{engine.pid}/children").read_text().split()
    assert len(ranks) == 2
    engine.kill()
    engine.communicate()
    deadline = time.monotonic() + 30
    while any(runs(pid) for pid in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.1)

    before = steps_of(out)[-1]
    engine = start(long, tmp_path, "--processes", "2", "--resume")
    wait_for_iteration(engine, out, before + 1)
    finished = stop(engine, out)
    assert read_settings(out / "settings.yaml").compute.num_processes == 2
    assert {path.name for path in (out / "ranks").iterdir()} == {"0.log", "1.log"}
    shorter = RunSettings.model_validate(long.model_dump() | {"iterations": finished.step + 1})
    assert train(shorter, tmp_path, "--resume") == 0
    assert steps_of(out) == list(range(1, finished.step + 2))


@pytest.mark.filterwarnings("ignore:Exception ignored in.*ranks:pytest.PytestUnraisableExceptionWarning")
def test_a_mistake_that_every_process_meets_is_told_once(
    tiny_settings: RunSettings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").unlink()
    assert train(tiny_settings, tmp_path, "--processes", "2") == process.MISTAKE
    error = capfd.readouterr().err
    assert "prompts.txt cannot be read" in error
    assert len(error.splitlines()) == 1
    assert train(tiny_settings, tmp_path, "--processes", "3") == process.MISTAKE
    assert "grpo.prompts_per_iteration is only 2" in capfd.readouterr().err
