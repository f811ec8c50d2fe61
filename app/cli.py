"""The `palate` command: the workbench (`up`), and what there is without a browser (`train`, `generate`, `evaluate`, …).

Every mistake of a user ends in one sentence on stderr and exit code 2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args

import typer
from pydantic import ValidationError

from app import headless
from engine.catalogue import EXPORT_INFO, ExportPrecision
from engine.presets import PRESETS
from engine.requests import EvaluationRequest, GenerationRequest, ScoringRequest
from engine.settings import Section
from engine.settings_text import SettingsError, explain, read_settings

app = typer.Typer(
    name="palate", help="Teach a flow-matching image model your taste.", no_args_is_help=True, add_completion=False,
    rich_markup_mode=None, pretty_exceptions_enable=False,
)
rewards_app = typer.Typer(help="Rewards: list them, try them, make their published weights ready.")
app.add_typer(rewards_app, name="rewards")
MISTAKE = 2
PRECISIONS: tuple[str, ...] = get_args(ExportPrecision)

# Options that `generate` and `evaluate` share.
Checkpoint = Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Folder of a run or of a checkpoint.")]
Step = Annotated[int | None, typer.Option(help="Checkpoint of a run; without: the newest.")]
Seed = Annotated[int | None, typer.Option(help="Prompt i is drawn from seed + i; without: as the run's gallery.")]
NumSteps = Annotated[int | None, typer.Option("--steps", help="Denoising steps; without: as the gallery.")]
Guidance = Annotated[float | None, typer.Option(help="Classifier-free guidance, 1 = none; without: as the gallery.")]
Hybrid = Annotated[
    float, typer.Option(help="Share of the steps, 0 to 1, drawn with the tuned weights; the base model draws the rest.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda; without: as the run.")]
Out = Annotated[Path, typer.Option(help="Folder for what is made.")]
AnyRequest = TypeVar("AnyRequest", bound=Section)


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
    processes: Annotated[
        int | None, typer.Option(help="Processes that train together, a GPU each; without: as the settings say.", min=1)
    ] = None,
) -> None:
    """Train without a browser. Ctrl-C stops it once a checkpoint is written."""
    try:
        read = read_settings(settings)
    except SettingsError as error:
        refuse(str(error))
    raise typer.Exit(
        headless.train(settings, out, resume=resume, iterations=read.iterations, processes=processes)
    )


@app.command()
def estimate(
    settings: Annotated[Path, typer.Argument(help="Settings in YAML, as `palate train` takes them.")],
    gpu: Annotated[
        list[str] | None, typer.Option(help="A GPU to tell of, such as H100; may be given several times.")
    ] = None,
) -> None:
    """Tell how much work, memory and time a run will take, from its model's headers, without starting it."""
    from app import estimates  # noqa: PLC0415 - looks at the model, for this command alone
    from engine.catalogue.gpus import GPUS, find_gpu  # noqa: PLC0415
    from engine.model_checks import check_model, folder_here  # noqa: PLC0415

    unknown = [name for name in gpu or [] if find_gpu(name) is None]
    if unknown:
        refuse(f"How fast a {unknown[0]} is, is not known; choose one of: {', '.join(known.name for known in GPUS)}.")
    try:
        read = read_settings(settings)
        check_model(read)
        typer.echo(estimates.all_of(read, folder_here(read.model), gpu or []))
    except ValueError as error:
        refuse(str(error))


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
def export(  # noqa: PLR0917 - typer reads the parameters
    run: Annotated[Path, typer.Argument(help="Folder of a run, as given to `palate train --out`.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    form: Annotated[str, typer.Option("--format", help=f"One of: {', '.join(EXPORT_INFO)}.")] = "diffusers",
    step: Annotated[int | None, typer.Option(help="Step to export; without: the newest checkpoint.", min=0)] = None,
    dtype: Annotated[str, typer.Option(help=f"What the weights are held in: {', '.join(PRECISIONS)}.")] = "float32",
    push: Annotated[str | None, typer.Option(help="Send it to the hub too; the token is HF_TOKEN.",
                                             metavar="ORG/NAME")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: for everyone to see.")] = False,
) -> None:
    """Write what a run has learned as a file that other programs load."""
    if not run.is_dir():
        refuse(f"{run} is not a folder; give the folder of a run, as in `palate train … --out {run}`.")
    if form not in EXPORT_INFO:
        refuse(f"There is no export format named {form}; choose one of: {', '.join(EXPORT_INFO)}.")
    if dtype not in PRECISIONS:
        refuse(f"Weights cannot be held in {dtype}; choose one of: {', '.join(PRECISIONS)}.")
    if public and push is None:
        refuse("--public says how --push sends; name a model with --push ORG/NAME.")
    sending = [*(["--push", push] if push is not None else []), *(["--public"] if public else [])]
    raise typer.Exit(headless.export(run, form, out, step, "--dtype", dtype, *sending))


@app.command()
def generate(
    run: Checkpoint,
    *,
    out: Out,
    prompt: Annotated[list[str], typer.Option(help="What to draw; may be given several times.")],
    step: Step = None,
    seed: Seed = None,
    steps: NumSteps = None,
    guidance: Guidance = None,
    hybrid: Hybrid = 1.0,
    device: Device = None,
) -> None:
    """Draw prompts with what a run has learned."""
    request = _request(
        GenerationRequest, run=run, step=step, prompts=prompt, seed=seed, num_steps=steps, guidance_scale=guidance,
        hybrid=hybrid, device=device, out=out,
    )  # fmt: skip
    raise typer.Exit(headless.generate(request))


@app.command()
def evaluate(
    run: Checkpoint,
    *,
    out: Out,
    against: Annotated[
        str | None, typer.Option(help='Compare in pairs with another run or checkpoint, or "base", the base model.')
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A .txt, .csv or .jsonl file; without: the run's held-out prompts.")
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="What to score with, one of the run's rewards or another; may be given several times."),
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(help="The first so many prompts alone.")] = None,
    step: Step = None,
    seed: Seed = None,
    steps: NumSteps = None,
    guidance: Guidance = None,
    hybrid: Hybrid = 1.0,
    against_hybrid: Annotated[float, typer.Option(help="The same as --hybrid, for --against.")] = 1.0,
    device: Device = None,
) -> None:
    """Score what a run has learned on a set of prompts: means, 95 % intervals, win rates, and a grid of the images."""
    request = _request(
        EvaluationRequest, run=run, step=step, against=against, against_hybrid=against_hybrid, prompts=prompts,
        num_prompts=num_prompts, rewards=tuple(dict.fromkeys(reward or [])), seed=seed, num_steps=steps,
        guidance_scale=guidance, hybrid=hybrid, device=device, out=out,
    )  # fmt: skip
    raise typer.Exit(headless.evaluate(request))


@rewards_app.callback(invoke_without_command=True)
def rewards(context: typer.Context) -> None:
    """List the rewards: what they measure, licence, size, and what they still lack on this machine."""
    if context.invoked_subcommand is None:
        from app.reward_text import rewards_text  # noqa: PLC0415 - looks at what is installed, for this command alone

        typer.echo(rewards_text())


@rewards_app.command()
def score(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    prompt: Annotated[str, typer.Option(help="What the image was made for.")] = "",
    reward: Annotated[
        list[str] | None,
        typer.Option(help="By name, or by its label in --settings; may be given several times; without: all that can."),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="Settings of a run: its rewards, with their weights, servers and functions.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Score an image: the score and milliseconds of each reward, or what it lacks."""
    request = _request(
        ScoringRequest, image=image, prompt=prompt, rewards=tuple(dict.fromkeys(reward or [])), settings=settings,
        device=device,
    )  # fmt: skip
    raise typer.Exit(headless.score_image(request))


@rewards_app.command()
def convert(
    file: Annotated[
        Path, typer.Argument(help="HPS_v2.1_compressed.pt, ImageReward.pt, an aesthetic head, or an open_clip CLIP.")
    ],
    out: Annotated[Path, typer.Option(help="New folder for the weights, to be named in a reward's `weights`.")],
    reward: Annotated[
        str | None, typer.Option(help="hpsv2 or clip_score, for a CLIP of open_clip whose file name does not say.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of what the file lacks (tokenizer, or a head's CLIP); without: the usual."),
    ] = None,
) -> None:
    """Make a published checkpoint into safetensors, once; nothing in it is run."""
    raise typer.Exit(headless.convert_reward(file, out, reward, base))


def _request(kind: type[AnyRequest], **fields: Any) -> AnyRequest:
    """A request of the options given, refused with a sentence where one is out of range."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        refuse(explain(error))


def main() -> None:
    """Entry point of the `palate` script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
