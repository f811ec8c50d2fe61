"""The `palate` command: the workbench (`up`), and runs without a browser (`train`, `presets`, `export`).

Every mistake of a user ends in one sentence on stderr and exit code 2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from app import headless
from engine.catalogue import EXPORT_INFO
from engine.presets import PRESETS
from engine.settings_text import SettingsError, read_settings

app = typer.Typer(
    name="palate", help="Teach a flow-matching image model your taste.", no_args_is_help=True, add_completion=False,
    rich_markup_mode=None, pretty_exceptions_enable=False,
)
MISTAKE = 2


def refuse(sentence: str) -> NoReturn:
    """Say what is wrong and leave with exit code 2."""
    typer.echo(sentence, err=True)
    raise typer.Exit(MISTAKE)


@app.command()
def up(
    demo: Annotated[bool, typer.Option(help="Queue a demo run if there are no runs yet.")] = True,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 unless set.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the workbench; 8501 unless set.", min=1, max=65535)] = None,
) -> None:
    """Start the workbench and one worker; Ctrl-C ends both."""
    from app import launch  # noqa: PLC0415 - database and queue take a second to load, for this command alone

    try:
        code = launch.up(demo=demo, host=host, port=port)
    except launch.LaunchError as error:
        refuse(str(error))
    raise typer.Exit(code)


@app.command()
def train(
    settings: Annotated[Path, typer.Argument(help="Settings in YAML, such as `palate presets NAME` prints.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: events, samples, checkpoints, result.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint in --out.")] = False,
) -> None:
    """Train without a browser. Ctrl-C stops it once a checkpoint is written."""
    try:
        read = read_settings(settings)
    except SettingsError as error:
        refuse(str(error))
    raise typer.Exit(headless.train(settings, out, resume=resume, iterations=read.iterations))


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="A preset to print as YAML; without: list them.")] = None,
) -> None:
    """List the presets, or print one as YAML that `palate train` takes."""
    if name is None:
        width = max(len(known) for known in PRESETS)
        for known, preset in PRESETS.items():
            typer.echo(f"{known:<{width}}  {preset.help}")
        return
    if name not in PRESETS:
        refuse(f"There is no preset named {name}; choose one of: {', '.join(PRESETS)}.")
    typer.echo(PRESETS[name].make().to_yaml(), nl=False)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as given to `palate train --out`.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    form: Annotated[str, typer.Option("--format", help=f"One of: {', '.join(EXPORT_INFO)}.")] = "diffusers",
    step: Annotated[int | None, typer.Option(help="Step to export; without: the newest checkpoint.", min=0)] = None,
) -> None:
    """Write what a run has learned as a file that other programs load."""
    if not run.is_dir():
        refuse(f"{run} is not a folder; give the folder of a run, as in `palate train … --out {run}`.")
    if form not in EXPORT_INFO:
        refuse(f"There is no export format named {form}; choose one of: {', '.join(EXPORT_INFO)}.")
    raise typer.Exit(headless.export(run, form, out, step))


def main() -> None:
    """Entry point of the `palate` script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
