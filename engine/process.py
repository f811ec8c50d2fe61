"""The engine as a process of its own: it writes its events to the run's folder, and ends with its parent.

`python -m engine.process train --settings FILE --out DIR [--resume | --resume-from CHECKPOINT …] [--processes N]`
`python -m engine.process export --run DIR --format NAME --out FILE [--checkpoint STEP] [--dtype DTYPE] […]`
`python -m engine.process generate|evaluate|score --request JSON` (engine/requests.py)
`python -m engine.process convert --file CHECKPOINT --out DIR [--reward NAME] [--base DIR_OR_HUB_ID]`

With several processes, the one that is started starts the run's ranks (engine/launch.py), each with this same command.

Exit codes: 0 done or stopped with a checkpoint; 2 a mistake the creator can mend, with a sentence; 1 a fault of ours.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from engine.artifacts.checkpoint import Checkpoint, CheckpointError, load_checkpoint, newest_checkpoint
from engine.artifacts.export import ExportReport, export_run
from engine.artifacts.push import Hub, PushError, own_token
from engine.assessment import evaluate_checkpoints
from engine.catalogue import ExportPrecision
from engine.event_log import EventLog, is_failed_start
from engine.events import Event, Finished, Message
from engine.inference import generate
from engine.launch import FAULT, MISTAKE, check_devices, launch
from engine.parent import end_with_parent
from engine.pinning import for_ranks, pin
from engine.ranks import Ranks, is_one_of_several, join_ranks
from engine.requests import EvaluationRequest, GenerationRequest, ScoringRequest
from engine.settings import RunSettings
from engine.settings_text import parse_settings, read_settings
from engine.train import train
from engine.trying import try_rewards
from engine.versions import versions
from engine.whole_files import write_whole


def run_training(arguments: argparse.Namespace) -> int:
    """Train, alone, as one of a run's ranks, or by starting them; returns the exit code."""
    out = Path(arguments.out)
    try:
        settings = _with_processes(read_settings(Path(arguments.settings)), arguments.processes)
        out.mkdir(parents=True, exist_ok=True)
        if not is_one_of_several():
            resumed = [*map(Path, arguments.resume_from), *([out] if arguments.resume else [])]
            settings = pin(settings, resumed)
            if settings.compute.num_processes > 1:
                return _launch_ranks(settings, arguments, out / "ranks")
    except (ValueError, OSError) as error:
        return _report_mistake(error, None)
    stop = _StopFlag()
    ranks = join_ranks(settings.compute)
    code = _train(settings, arguments, ranks, stop)
    if code == 0:
        ranks.leave()
    return code


def _launch_ranks(settings: RunSettings, arguments: argparse.Namespace, folder: Path) -> int:
    """Start the ranks of a run, and wait for them; returns the exit code."""
    check_devices(settings.compute)
    words = _training_words(arguments, for_ranks(settings, Path(arguments.settings), folder))
    return launch((sys.executable, "-m", "engine.process", *words), settings.compute.num_processes, folder)


def _training_words(arguments: argparse.Namespace, settings: Path) -> list[str]:
    """The command line of a training again, for each of its ranks."""
    words = ["train", "--settings", str(settings), "--out", arguments.out]
    words += ["--resume"] if arguments.resume else []
    return words + [word for path in arguments.resume_from for word in ("--resume-from", path)]


def _with_processes(settings: RunSettings, num_processes: int | None) -> RunSettings:
    """The settings with the number of processes that was asked for, or that there are. Raises SettingsError."""
    if is_one_of_several():
        num_processes = int(os.environ["WORLD_SIZE"])
    if num_processes is None:
        return settings
    data = settings.model_dump()
    data["compute"]["num_processes"] = num_processes
    return parse_settings(data)


def _train(settings: RunSettings, arguments: argparse.Namespace, ranks: Ranks, stop: Callable[[], bool]) -> int:
    """Train as one of the ranks, of which the main one keeps the run's folder; returns the exit code."""
    out, log = Path(arguments.out), None
    try:
        checkpoint = _find_checkpoint(arguments, out, settings)
        if ranks.is_main:
            _refuse_to_overwrite(arguments, out)
            write_whole(out / "settings.yaml", settings.to_yaml())
            log = EventLog(out, checkpoint.step if checkpoint else 0)
            if checkpoint is not None:
                log.tell_of(checkpoint.path, checkpoint.step)
    except (ValueError, OSError) as error:
        return _report_mistake(error, None)
    begun = time.perf_counter()
    try:
        finished = train(settings, out, log or _say_nothing, checkpoint=checkpoint, should_stop=stop, ranks=ranks)
        if log is not None:
            _write_result(out, settings, log, finished, time.perf_counter() - begun)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        return _report_mistake(error, log)
    finally:
        if log is not None:
            log.close()
    return 0


def _say_nothing(event: Event) -> None:
    """Where events go that the main rank tells."""


def _find_checkpoint(arguments: argparse.Namespace, out: Path, settings: RunSettings) -> Checkpoint | None:
    """The newest usable checkpoint among those named, or the folder's own with --resume; None to start anew."""
    candidates = [Path(candidate) for candidate in arguments.resume_from]
    if not candidates and arguments.resume:
        newest = newest_checkpoint(out / "checkpoints")
        candidates = [newest] if newest else []
    for candidate in candidates:
        try:
            checkpoint = load_checkpoint(candidate)
        except CheckpointError as error:
            print(f"Passed over a checkpoint: {error}", file=sys.stderr)
            continue
        _check_same_run(read_settings(candidate / "settings.yaml"), settings)
        return checkpoint
    return None


def _check_same_run(earlier: RunSettings, settings: RunSettings) -> None:
    """Raise ValueError if a run cannot go on under these settings: only its length and reporting may change."""
    before, after = _what_must_stay(earlier), _what_must_stay(settings)
    changed = sorted(section for section in before if before[section] != after[section])
    if changed:
        raise ValueError(
            f"The checkpoint was made with other settings ({', '.join(changed)}), so the run cannot go on from it; "
            "resume with the settings.yaml of the run's folder, or choose a new --out folder to start anew."
        )


def _what_must_stay(settings: RunSettings) -> dict[str, Any]:
    free_to_change = {"iterations", "evaluation", "checkpoints", "compute", "guards", "prompts"}
    return settings.model_dump(mode="json", exclude=free_to_change)


def _refuse_to_overwrite(arguments: argparse.Namespace, out: Path) -> None:
    if arguments.resume or arguments.resume_from or not (out / "events.jsonl").exists():
        return
    if not is_failed_start(out):
        raise ValueError(f"{out} already holds a run; add --resume to go on with it, or choose another --out folder.")


def _write_result(out: Path, settings: RunSettings, log: EventLog, finished: Finished, seconds: float) -> None:
    """`result.json`: how it ended, first and last held-out scores, and what is needed to repeat it."""
    first, last = (log.samples[0], log.samples[-1]) if log.samples else (None, None)
    result = {
        "outcome": finished.outcome,
        "step": finished.step,
        "iterations": settings.iterations,
        "seconds": round(seconds, 3),
        "settings_digest": settings.digest(),
        "seed": settings.seed,
        "versions": versions(),
        "held_out": {
            "first": {"step": first.step, **first.rewards, **first.metrics} if first else None,
            "last": {"step": last.step, **last.rewards, **last.metrics} if last else None,
        },
    }
    write_whole(out / "result.json", json.dumps(result, indent=2) + "\n")


def _report_mistake(error: Exception, log: EventLog | None) -> int:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        where = error.filename or "a file of the run"
        text = f"{error.strerror}: {where}. Free some space or check permissions, then try again."
    print(text, file=sys.stderr)
    if log is not None:
        with suppress(OSError):  # on a full disk stderr alone has said it
            log(Message(time=time.time(), level="error", text=text))
    return MISTAKE


def run_export(arguments: argparse.Namespace) -> int:
    """Export, and send to the hub if asked; prints the report."""
    out = Path(arguments.out)
    try:
        hub = None if arguments.push_last else _hub(arguments)
        report = export_run(Path(arguments.run), arguments.format, out, arguments.checkpoint, arguments.dtype)
        # Told at once, for whatever becomes of the sending: the export itself is made.
        print(report.text, flush=True)
        if arguments.push is not None:
            print(_send(hub, arguments, report))
    except (ValueError, OSError) as error:
        return _report_mistake(error, None)
    return 0


def _hub(arguments: argparse.Namespace) -> Hub | None:
    """Where an export goes, asked whether it could, before a long export is made. Raises ValueError."""
    if arguments.push is None:
        return None
    if Path(arguments.out).suffix == ".safetensors":
        raise PushError("The hub is sent a folder with its card; give --out a new folder, or a .zip, with --push.")
    hub = Hub(arguments.push, own_token(), arguments.public)
    hub.check()
    return hub


def _send(hub: Hub | None, arguments: argparse.Namespace, report: ExportReport) -> str:
    try:
        hub = hub or _hub(arguments)
        assert hub is not None, "something is to be sent"
        return hub.push(report.path)
    except PushError as error:
        raise PushError(f"{error} The export itself is in {report.path.name}.") from error


def run_generation(arguments: argparse.Namespace) -> int:
    """Draw prompts; returns the exit code."""
    try:
        generate(GenerationRequest.model_validate_json(arguments.request), _show_progress)
    except (ValueError, OSError) as error:
        return _report_mistake(error, None)
    return 0


def run_evaluation(arguments: argparse.Namespace) -> int:
    """Score one or two models; returns the exit code."""
    try:
        evaluate_checkpoints(EvaluationRequest.model_validate_json(arguments.request), _show_progress)
    except (ValueError, OSError) as error:
        return _report_mistake(error, None)
    return 0


def run_conversion(arguments: argparse.Namespace) -> int:
    """Make a reward's published checkpoint into a folder that it loads; returns the exit code."""
    from engine.rewards.conversion import convert  # noqa: PLC0415 - for this command alone

    try:
        made = convert(Path(arguments.file), Path(arguments.out), arguments.reward, arguments.base)
    except (ValueError, OSError) as error:
        return _report_mistake(error, None)
    print(f"{made.folder} holds the weights of {made.reward}. Use them in a run's settings with\n"
          f"  - {{name: {made.reward}, weights: {made.folder.resolve()}}}")  # fmt: skip
    return 0


def run_scoring(arguments: argparse.Namespace) -> int:
    """Score an image; a line a reward; returns the exit code."""
    try:
        request = ScoringRequest.model_validate_json(arguments.request)
        if not try_rewards(request, lambda line: print(line, flush=True)):
            raise ValueError("No reward gave a score.")
    except (ValueError, OSError) as error:
        return _report_mistake(error, None)
    return 0


def _show_progress(name: str, done: int, total: int) -> None:
    """A line that is rewritten on a terminal; elsewhere one line when all is drawn."""
    if sys.stdout.isatty():
        print(f"\r\x1b[2K{name}: {done}/{total} images", end="\n" if done == total else "", flush=True)
    elif done == total:
        print(f"{name}: {total} images", flush=True)


class _StopFlag:
    """True once SIGTERM or SIGINT has come."""

    def __init__(self) -> None:
        self._stop = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: object) -> None:
        self._stop = True

    def __call__(self) -> bool:
        return self._stop


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m engine.process")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--settings", required=True)
    training.add_argument("--out", required=True)
    training.add_argument("--resume", action="store_true")
    training.add_argument("--resume-from", action="append", default=[], metavar="CHECKPOINT")
    training.add_argument("--processes", type=int, metavar="N")
    exporting = commands.add_parser("export")
    exporting.add_argument("--run", required=True)
    exporting.add_argument("--format", required=True)
    exporting.add_argument("--out", required=True)
    exporting.add_argument("--checkpoint", type=int, metavar="STEP")
    exporting.add_argument("--push", metavar="ORG/NAME")
    exporting.add_argument("--public", action="store_true")
    # Nobody waits who could mend what the hub says: first the export, then its question.
    exporting.add_argument("--push-last", action="store_true")
    exporting.add_argument("--dtype", default="float32", choices=get_args(ExportPrecision))
    converting = commands.add_parser("convert")
    converting.add_argument("--file", required=True)
    converting.add_argument("--out", required=True)
    converting.add_argument("--reward")
    converting.add_argument("--base", metavar="DIR_OR_HUB_ID")
    for name in ("generate", "evaluate", "score"):
        commands.add_parser(name).add_argument("--request", required=True, metavar="JSON")
    return parser.parse_args(argv)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": run_training,
    "export": run_export,
    "generate": run_generation,
    "evaluate": run_evaluation,
    "convert": run_conversion,
    "score": run_scoring,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = parse_arguments(argv)
    end_with_parent()
    try:
        return _COMMANDS[arguments.command](arguments)
    except (RuntimeError, OSError, AssertionError):
        traceback.print_exc()
        return FAULT


if __name__ == "__main__":
    sys.exit(main())
