"""What an engine is started on: its input files and its command line, from typed rows, never a shell string."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from engine.catalogue import EXPORT_INFO
from engine.prompt_files import hold_out, to_jsonl
from engine.settings import RunSettings
from store import files, results, runs
from store.config import Config
from store.database import Database
from store.jobs import Lease
from store.permissions import Permissions
from store.prompt_sets import prompts_of


@dataclass(frozen=True)
class TrainingLaunch:
    """A training's command, the folder it writes to, and the steps it may resume from (newest first)."""

    command: tuple[str, ...]
    folder: Path
    resume_steps: tuple[int, ...]
    keep_checkpoints: int


@dataclass(frozen=True)
class ExportLaunch:
    """An export's command, the file it is asked for, and the checkpoint's step."""

    command: tuple[str, ...]
    out: Path
    step: int


def prepare_training(config: Config, database: Database, lease: Lease) -> TrainingLaunch:
    """Write the inputs of a training and name its command. Raises ValueError if the run cannot be started."""
    with database.read() as session:
        run = runs.get_run(session, lease.run_id)
        if run is None:
            raise ValueError("The run is no longer in the database.")
        prompts = None if run.prompt_set_id is None else prompts_of(session, run.prompt_set_id)
        checkpoints = [
            (row.step, path)
            for row in results.checkpoints_of(session, lease.run_id)
            if (path := files.resolve(config, row.path)).is_dir()
        ]
    # The inputs have one place for all epochs: a checkpoint belongs to settings, and settings name these files.
    inputs = files.run_folder(config, lease.run_id)
    settings = _with_prompts(_permitted(config, run.settings), prompts, inputs)
    files.write_whole(inputs / "settings.yaml", settings.to_yaml())
    folder = files.epoch_folder(config, lease.run_id, lease.epoch)
    resume = [word for _, path in checkpoints for word in ("--resume-from", str(path))]
    command = (*config.engine_command, "train", "--settings", str(inputs / "settings.yaml"), "--out", str(folder))
    return TrainingLaunch(
        command=(*command, *resume),
        folder=folder,
        resume_steps=tuple(step for step, _ in checkpoints),
        keep_checkpoints=settings.checkpoints.keep,
    )


def prepare_export(config: Config, database: Database, lease: Lease) -> ExportLaunch:
    """Name an export's command. Raises ValueError if the checkpoint is no longer there."""
    step, format_name = int(lease.payload["step"]), str(lease.payload["format"])
    with database.read() as session:
        run = runs.get_run(session, lease.run_id)
        rows = {row.step: row for row in results.checkpoints_of(session, lease.run_id)}
    path = files.resolve(config, rows[step].path) if step in rows else None
    if run is None or path is None or not path.is_dir():
        raise ValueError(f"The checkpoint of step {step} is no longer there; export a newer one.")
    _permitted(config, run.settings)
    folder = files.run_folder(config, lease.run_id) / "exports" / f"{lease.job_id}-{lease.epoch}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    out = folder / EXPORT_INFO[format_name].file_names[run.settings.tuning.method]
    sending: tuple[str, ...] = ()
    if push := lease.payload.get("push"):
        Permissions.of(config).require_push(push)
        out = out.with_suffix(".zip")  # the hub is sent its card and images too
        sending = ("--push", push, "--push-last", *(["--public"] if lease.payload.get("public") else []))
    command = (
        *config.engine_command, "export", "--run", str(path.parent.parent), "--checkpoint", str(step),
        "--format", format_name, "--out", str(out), "--dtype", str(lease.payload.get("precision", "float32")), *sending,
    )  # fmt: skip
    return ExportLaunch(command=command, out=out, step=step)


def prune_checkpoints(config: Config, database: Database, lease: Lease, keep: int) -> None:
    """Forget checkpoints the engine has removed, and remove those of earlier epochs once `keep` newer ones exist."""
    with database.read() as session:
        rows = results.checkpoints_of(session, lease.run_id)
    gone = [row for row in rows if not files.resolve(config, row.path).is_dir()]
    present = [row for row in rows if row not in gone]
    # The engine keeps its own epoch's; it does not know the others.
    outdated = [row for row in present[keep:] if row.epoch < lease.epoch]
    if not gone and not outdated:
        return
    with database.write() as session:
        results.forget_checkpoints(session, lease, [row.step for row in (*gone, *outdated)])
    for row in outdated:
        shutil.rmtree(files.resolve(config, row.path), ignore_errors=True)


def _permitted(config: Config, settings: RunSettings) -> RunSettings:
    """The settings, if this worker may read their model: the operator may have changed the list since the launch."""
    return settings.model_copy(update={"model": Permissions.of(config).checked_model(settings.model)})


def _with_prompts(settings: RunSettings, prompts: list[str] | None, folder: Path) -> RunSettings:
    if prompts is None:
        return settings
    train, held_out = hold_out(prompts)
    files.write_whole(folder / "prompts.jsonl", to_jsonl(train))
    files.write_whole(folder / "evaluation.jsonl", to_jsonl(held_out))
    named = settings.prompts.model_copy(
        update={"file": str(folder / "prompts.jsonl"), "evaluation_file": str(folder / "evaluation.jsonl")}
    )
    return settings.model_copy(update={"prompts": named})


