"""`palate train`, `export`, `generate` and `evaluate`: the engine as a process, its events as one line of progress."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

import typer

from app import words
from app.evaluation_text import evaluation_text
from engine.events import CheckpointSaved, Event, Finished, IterationDone, Message, SamplesDrawn, Started, parse_event
from engine.parent import told_to_children
from engine.reports import EVALUATION_NAME, GENERATION_NAME, GRID_NAME, Evaluation
from engine.requests import EvaluationRequest, GenerationRequest, ScoringRequest

_POLL_SECONDS = 0.2


class EventTail:
    """Reads events from a growing `events.jsonl`, and from its start again when the file is replaced."""

    def __init__(self, path: Path) -> None:
        """`path` need not exist yet. What it holds now is not reported: it is an earlier process's."""
        self._path = path
        self._inode, self._offset = self._identity()

    def _identity(self) -> tuple[int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return -1, 0
        return status.st_ino, status.st_size

    def new_events(self) -> Iterator[Event]:
        """Events that whole lines have added since the last call."""
        inode, size = self._identity()
        if inode != self._inode or size < self._offset:
            self._inode, self._offset = inode, 0
        if size <= self._offset:
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode().splitlines():
            yield parse_event(line)


class Progress:
    """Events as text: a line that is rewritten on a terminal; elsewhere a line an iteration."""

    def __init__(self, iterations: int, stream: TextIO) -> None:
        """`iterations` is the run's length until an event says otherwise."""
        self._iterations = iterations
        self._stream = stream
        self._rewrite = stream.isatty()
        self._base: dict[str, float] = {}
        self.finished: Finished | None = None

    def show(self, event: Event) -> None:
        """Print one event."""
        match event:
            case Started():
                self._iterations = event.iterations
                self._line(f"Training on {event.device}, {event.iterations} iterations"
                           + (f", on from step {event.step}." if event.step else "."))
            case IterationDone():
                self._status(self.iteration_text(event))
            case SamplesDrawn():
                self._line(self.samples_text(event))
            case CheckpointSaved():
                self._line(f"Step {event.step}: checkpoint saved ({words.size(event.num_bytes)}).")
            case Message():
                self._line(event.text if event.level == "info" else f"{event.level.capitalize()}: {event.text}")
            case Finished():
                self.finished = event

    def iteration_text(self, event: IterationDone) -> str:
        """One iteration: "12/100  vividness 0.93  2.1 s an iteration  3 min left"."""
        seconds = event.seconds
        spent = seconds.sample + seconds.decode + seconds.score + seconds.train
        rewards = "  ".join(f"{name} {words.score(name, value)}" for name, value in event.rewards.items())
        return f"{event.step}/{self._iterations}  {rewards}  {spent:.1f} s an iteration  " \
               f"{words.time_left(event.eta_seconds)}"

    def samples_text(self, event: SamplesDrawn) -> str:
        """One sampling: "Step 20, held-out prompts: vividness 0.89 → 1.34 (+51 %)"."""
        if event.step == 0:
            self._base = dict(event.rewards)
        gains = (f"{name} {words.gain(name, self._base.get(name), value)}" for name, value in event.rewards.items())
        return f"Step {event.step}, held-out prompts: {', '.join(gains)}"

    def _status(self, text: str) -> None:
        self._stream.write(f"\r\x1b[2K{text}" if self._rewrite else f"{text}\n")
        self._stream.flush()

    def _line(self, text: str) -> None:
        self._stream.write(f"\r\x1b[2K{text}\n" if self._rewrite else f"{text}\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave the line that is being rewritten."""
        if self._rewrite:
            self._stream.write("\n")
            self._stream.flush()


def train(
    settings: Path,
    out: Path,
    *,
    resume: bool,
    iterations: int,
    processes: int | None = None,
    engine: Sequence[str] = (),
) -> int:
    """Run the engine on a settings file and show its progress; returns the exit code.

    `processes` is how many there are to be, where the settings say otherwise. `engine` replaces the engine's command in
    tests. Ctrl-C and SIGTERM are handed on, and the checkpoint waited for.
    """
    command = [*(engine or (sys.executable, "-m", "engine.process")), "train"]
    command += ["--settings", str(settings), "--out", str(out), *(["--resume"] if resume else [])]
    command += ["--processes", str(processes)] if processes is not None else []
    tail, progress = EventTail(out / "events.jsonl"), Progress(iterations, sys.stdout)
    _restore_base(out, progress)
    # A session of its own: Ctrl-C reaches the engine once, from here, and not twice.
    said: deque[str] = deque(maxlen=200)
    with subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE, text=True, errors="replace",
        env={**os.environ, **told_to_children()},
    ) as process:
        reader = threading.Thread(target=_collect, args=(process, said), daemon=True)
        reader.start()
        stopper = _Stopper(process)
        while process.poll() is None:
            for event in tail.new_events():
                progress.show(event)
            time.sleep(_POLL_SECONDS)
        stopper.restore()
        reader.join(timeout=5)
    for event in tail.new_events():
        progress.show(event)
    progress.end()
    return _conclude(process.returncode, progress, said, out)


def _restore_base(out: Path, progress: Progress) -> None:
    """A resumed run compares with the step 0 that its folder already holds."""
    try:
        lines = (out / "events.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            data = json.loads(line)
        except ValueError:
            return
        if data.get("kind") == "samples" and data.get("step") == 0:
            progress.samples_text(SamplesDrawn.model_validate(data))
            return


class _Stopper:
    """Hands SIGINT and SIGTERM on to the engine as one SIGTERM; a third one kills it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._count = 0
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count == 1:
            typer.echo("\nStopping: a checkpoint is being written, please wait.")
            self._process.terminate()
        elif self._count >= 3:
            self._process.kill()

    def restore(self) -> None:
        """Give the signals back to whoever handled them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _collect(process: subprocess.Popen[str], said: deque[str]) -> None:
    assert process.stderr is not None
    said.extend(line.rstrip("\n") for line in process.stderr)


def _conclude(code: int, progress: Progress, said: deque[str], out: Path) -> int:
    if code == 0 and progress.finished is not None:
        if progress.finished.outcome == "stopped":
            typer.echo(f"Stopped at step {progress.finished.step}; go on with --resume --out {out}.")
        else:
            typer.echo(f"Done: {progress.finished.step} iterations. Results are in {out}; take the result home with "
                  f"`palate export {out} --format diffusers --out FILE`.")
        return 0
    if code == 2:
        typer.echo("\n".join(said) or "The engine refused the run without saying why.", err=True)
        return 2
    log = out / "engine.log"
    if said and out.is_dir():
        log.write_text("\n".join(said) + "\n", encoding="utf-8")
    how = "ended without finishing" if code == 0 else f"failed (exit code {code})"
    typer.echo(f"The engine {how}. {words.cause(' '.join(said) or f'exit code {code}')}\n"
          f"What it said is in {log}; go on from the newest checkpoint with --resume.", err=True)
    return 1


def export(
    run: Path, form: str, out: Path, step: int | None, *more: str, engine: Sequence[str] = ()
) -> int:
    """Run the engine's export, with `more` of its options, and show its report; returns the exit code."""
    command = ["export", "--run", str(run), "--format", form, "--out", str(out), *more]
    return _call("export", [*command, *(["--checkpoint", str(step)] if step is not None else [])], engine)


def generate(request: GenerationRequest, *, engine: Sequence[str] = ()) -> int:
    """Have the engine draw, and say where the images are; returns the exit code."""
    code = _call("drawing", ["generate", "--request", request.model_dump_json()], engine)
    if code == 0:
        typer.echo(f"{words.count(len(request.prompts), 'image')} in {request.out}, with {GENERATION_NAME}.")
    return code


def evaluate(request: EvaluationRequest, *, engine: Sequence[str] = ()) -> int:
    """Have the engine draw and score, and show the figures; returns the exit code."""
    code = _call("evaluation", ["evaluate", "--request", request.model_dump_json()], engine)
    if code == 0:
        report = (request.out / EVALUATION_NAME).read_text(encoding="utf-8")
        typer.echo(f"\n{evaluation_text(Evaluation.model_validate_json(report))}")
        typer.echo(f"All of it is in {request.out}: {EVALUATION_NAME}, {GRID_NAME} and the images.")
    return code


def convert_reward(file: Path, out: Path, reward: str | None, base: str | None, *, engine: Sequence[str] = ()) -> int:
    """Have the engine make a reward's checkpoint into a folder; returns the exit code."""
    command = ["convert", "--file", str(file), "--out", str(out)]
    command += ["--reward", reward] if reward is not None else []
    return _call("conversion", [*command, *(["--base", base] if base is not None else [])], engine)


def score_image(request: ScoringRequest, *, engine: Sequence[str] = ()) -> int:
    """Have the engine score an image, a line a reward; returns the exit code."""
    return _call("scoring", ["score", "--request", request.model_dump_json()], engine)


def _call(what: str, arguments: Sequence[str], engine: Sequence[str]) -> int:
    """Run the engine to its end, its stdout shown; returns 0, or after a sentence 2 (a mistake) or 1 (a fault)."""
    command = [*(engine or (sys.executable, "-m", "engine.process")), *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return 0
    if done.returncode == 2:
        typer.echo(done.stderr.strip(), err=True)
        return 2
    last = done.stderr.strip().splitlines()[-1:] or ["It did not say why."]
    typer.echo(f"The {what} failed (exit code {done.returncode}): {last[0]}", err=True)
    return 1
