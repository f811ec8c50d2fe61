"""The `palate` command: mistakes are sentences with exit code 2, progress is words."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app import headless
from app.cli import app
from engine.catalogue import REWARD_INFO
from engine.catalogue.presence import what_lacks
from engine.events import Finished, IterationDone, PhaseSeconds, SampleImage, SamplesDrawn
from engine.presets import PRESETS
from engine.requests import EvaluationRequest, GenerationRequest
from engine.settings_text import from_yaml
from tests.app.test_evaluation_text import BASE, ROWS, TUNED, evaluation, scored
from tests.installations import fake_engine, small_settings

runner = CliRunner()


def test_presets_are_listed() -> None:
    result = runner.invoke(app, ["presets"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_printed_preset_is_read_back(name: str) -> None:
    result = runner.invoke(app, ["presets", name])
    assert from_yaml(result.stdout) == PRESETS[name].make()


def test_an_estimate_is_of_work_memory_and_time(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("{}")
    result = runner.invoke(app, ["estimate", str(path)])
    assert result.exit_code == 0
    work, memory, seconds = result.stdout.splitlines()
    assert "782 transformer forwards" in work and "of GPU memory" in memory
    assert seconds.startswith("About ") and "on this machine's CPU" in seconds

    path.write_text(f"model: {{name: flux, folder: {tmp_path}}}")
    result = runner.invoke(app, ["estimate", str(path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is not a diffusers pipeline folder" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["presets", "mixgrpoo"], "There is no preset named mixgrpoo"),
        (["train", "nowhere.yaml", "--out", "run"], "nowhere.yaml cannot be read"),
        (["estimate", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["estimate", "nowhere.yaml", "--gpu", "Voodoo"], "How fast a Voodoo is, is not known; choose one of"),
        (["export", "nowhere", "--out", "file"], "nowhere is not a folder"),
        (["export", ".", "--out", "file", "--format", "jpeg"], "There is no export format named jpeg"),
        (["export", ".", "--out", "file", "--dtype", "int8"], "Weights cannot be held in int8; choose one of: float32"),
        (["export", ".", "--out", "file", "--public"], "name a model with --push ORG/NAME"),
        (["evaluate", "run", "--out", "out", "--hybrid", "1.5"], "`hybrid`: Input should be less than or equal to 1."),
        (["generate", "run", "--out", "out", "--prompt", ""], "A prompt is empty"),
        (["generate", "run", "--out", "out", "--prompt", "star", "--steps", "0"], "`num_steps`: Input should be"),
        (["rewards", "score", "image.png", "--device", "tpu"], "`device`: Input should be 'auto', 'cpu' or 'cuda'"),
        (["up", "--host", "0.0.0.0"], "can be reached by others"),
    ],
)
def test_mistakes(arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALATE_HOST", "127.0.0.1")  # `up` sets it; this puts it back
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("iterations: 5\nrewads: []\n", "Unknown setting `rewads`"), ("iterations: [", "not valid YAML"),
     ("rewards: [{name: vividness, weight: 0}]", "All reward weights are zero")],
)
def test_bad_settings(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    result = runner.invoke(app, ["train", str(tmp_path / "settings.yaml"), "--out", str(tmp_path / "run")])
    assert (result.exit_code, (tmp_path / "run").exists()) == (2, False)
    assert sentence in result.stderr


def test_rewards_are_listed_with_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.catalogue.presence.find_spec", lambda module: None)
    monkeypatch.setattr("engine.catalogue.presence.try_to_load_from_cache", lambda hub, file: None)
    result = runner.invoke(app, ["rewards"])
    assert result.exit_code == 0
    blocks = {block.split(":")[0]: block for block in re.split(r"\n(?! )", result.stdout.strip())}
    assert list(blocks) == list(REWARD_INFO)
    assert "3.94 GB of weights, about 2.6 GB of memory; licence: MIT" in blocks["pickscore"]
    assert "weights not here: yuvalkirstain/PickScore_v1 is fetched" in blocks["pickscore"]
    assert '    not ready: install it: .venv/bin/pip install -c constraints.txt -e ".[rewards]"' in blocks["ocr"]
    assert "palate rewards convert" in blocks["hpsv2"]
    assert "name a `server`" in blocks["judge"]
    assert blocks["vividness"].endswith("\n    ready")


def test_rewards_that_are_here_are_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.catalogue.presence.find_spec", lambda module: object())
    monkeypatch.setattr("engine.catalogue.presence.try_to_load_from_cache", lambda hub, file: f"/cache/{file}")
    assert [what_lacks(name) for name in ("ocr", "safety", "clip_score", "pickscore")] == [""] * 4


def settings_file(tmp_path: Path) -> Path:
    file = tmp_path / "settings.yaml"
    file.write_text(small_settings(iterations=6).to_yaml())
    return file


def test_training_shows_its_way(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = headless.train(settings_file(tmp_path), tmp_path / "run", resume=False, iterations=6, engine=fake_engine())
    out = capfd.readouterr().out
    assert code == 0
    assert "Training on fake, 6 iterations." in out
    assert "6/6  composition" in out
    assert "Step 3, held-out prompts: composition 0.00 → 0.14" in out
    assert "Done: 6 iterations." in out


def test_the_number_of_processes_is_handed_on(tmp_path: Path) -> None:
    engine = recording_engine(tmp_path)
    headless.train(settings_file(tmp_path), tmp_path / "run", resume=True, iterations=6, processes=2, engine=engine)
    words = (tmp_path / "request").read_text().split("\n")
    assert words[-3:] == ["--resume", "--processes", "2"]


def test_engine_that_crashes_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = fake_engine("--crash-at", "3")
    code = headless.train(settings_file(tmp_path), tmp_path / "run", resume=False, iterations=6, engine=engine)
    said = capfd.readouterr().err
    assert code == 1
    assert "RuntimeError: the fake engine crashed" in said
    assert "the fake engine crashed" in (tmp_path / "run" / "engine.log").read_text()


def test_engine_that_leaves_without_a_word_has_not_finished(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = fake_engine("--leave-at", "3")
    assert headless.train(settings_file(tmp_path), tmp_path / "run", resume=False, iterations=6, engine=engine) == 1
    assert "ended without finishing" in capfd.readouterr().err


def test_engines_refusal_is_passed_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = fake_engine("--refuse", "The disk is too small.")
    assert headless.train(settings_file(tmp_path), tmp_path / "run", resume=False, iterations=6, engine=engine) == 2
    assert capfd.readouterr().err == "The disk is too small.\n"


def test_interrupt_waits_for_the_checkpoint(tmp_path: Path) -> None:
    """Ctrl-C in a terminal: `palate train` must hand it on once and outlive the engine."""
    import signal
    import subprocess

    program = (
        "import sys; from pathlib import Path; from app import headless; "
        f"sys.exit(headless.train(Path(sys.argv[1]), Path(sys.argv[2]), resume=False, iterations=6, "
        f"engine={fake_engine('--delay', '0.5')!r}))"
    )
    command = [sys.executable, "-c", program, str(settings_file(tmp_path)), str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    events = tmp_path / "run" / "events.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (events.exists() and '"iteration"' in events.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Stopped at step" in out
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_export_says_what_the_engine_says(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = headless.export(tmp_path, "diffusers", tmp_path / "lora.safetensors", 4, engine=fake_engine())
    assert (code, capfd.readouterr().out) == (0, "Exported step 4 as diffusers.\n")
    refused = headless.export(tmp_path, "x", tmp_path / "f", 4, engine=fake_engine("--refuse", "No such format."))
    assert (refused, capfd.readouterr().err) == (2, "No such format.\n")


def test_the_options_of_an_export_reach_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(headless, "export", lambda *arguments: calls.append(arguments) or 0)
    options = ["--format", "kohya", "--dtype", "bfloat16", "--push", "org/mine", "--public"]
    assert runner.invoke(app, ["export", str(tmp_path), "--out", "file", *options]).exit_code == 0
    assert calls == [(tmp_path, "kohya", Path("file"), None, "--dtype", "bfloat16", "--push", "org/mine", "--public")]


def recording_engine(tmp_path: Path, program: str = "") -> tuple[str, ...]:
    """An engine that leaves the request it was given in a file, and then runs a program of its own."""
    script = tmp_path / "engine.py"
    request = str(tmp_path / "request")
    script.write_text(f"import sys; open({request!r}, 'w').write('\\n'.join(sys.argv[1:])); {program}")
    return (sys.executable, str(script))


def test_generating_asks_the_engine_and_says_where_the_images_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    request = GenerationRequest(run=tmp_path, out=tmp_path / "out", prompts=("a star", "two stars"), hybrid=0.6)
    assert headless.generate(request, engine=recording_engine(tmp_path)) == 0
    assert f"2 images in {tmp_path / 'out'}" in capfd.readouterr().out
    command, flag, asked = (tmp_path / "request").read_text().split("\n")
    assert (command, flag) == ("generate", "--request")
    assert GenerationRequest.model_validate_json(asked) == request
    refusing = recording_engine(tmp_path, "print('No such run.', file=sys.stderr); sys.exit(2)")
    assert headless.generate(request, engine=refusing) == 2
    assert capfd.readouterr() == ("", "No such run.\n")


def test_evaluating_shows_the_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = evaluation(scored("mine", TUNED), scored("base", BASE))
    (tmp_path / "evaluation.json").write_text(report.model_dump_json())
    request = EvaluationRequest(run=tmp_path, out=tmp_path)
    assert headless.evaluate(request, engine=recording_engine(tmp_path)) == 0
    assert "\n".join(ROWS) in capfd.readouterr().out
    assert EvaluationRequest.model_validate_json((tmp_path / "request").read_text().split("\n")[2]) == request
    crashing = recording_engine(tmp_path, "raise RuntimeError('out of memory')")
    assert headless.evaluate(request, engine=crashing) == 1
    assert capfd.readouterr().err == "The evaluation failed (exit code 1): RuntimeError: out of memory\n"


def test_options_become_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[EvaluationRequest | GenerationRequest] = []
    monkeypatch.setattr(headless, "evaluate", lambda request: asked.append(request) or 0)
    monkeypatch.setattr(headless, "generate", lambda request: asked.append(request) or 0)
    both = "r --out o --step 4 --seed 5 --steps 6 --guidance 2 --hybrid 0.6 --device cpu"
    more = "--against base --against-hybrid 0.5 --prompts p.txt --num-prompts 7 --reward vividness --reward composition"
    assert runner.invoke(app, f"evaluate {both} {more}").exit_code == 0
    assert runner.invoke(app, f"generate {both} --prompt 'a star' --prompt b").exit_code == 0
    shared = {
        "run": "r", "out": "o", "step": 4, "seed": 5, "num_steps": 6, "guidance_scale": 2, "hybrid": 0.6,
        "device": "cpu",
    }  # fmt: skip
    scoring = {
        "against": "base", "against_hybrid": 0.5, "prompts": "p.txt", "num_prompts": 7,
        "rewards": ("vividness", "composition"),
    }  # fmt: skip
    assert asked == [
        EvaluationRequest.model_validate(shared | scoring),
        GenerationRequest.model_validate(shared | {"prompts": ("a star", "b")}),
    ]


def finished(step: int) -> str:
    return Finished(time=1.0, step=step, outcome="completed").model_dump_json() + "\n"


def test_tail_reads_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = headless.EventTail(path)
    assert list(tail.new_events()) == []
    line = finished(1)
    path.write_text(line + line[:10])
    assert len(list(tail.new_events())) == 1
    path.write_text(line + line)
    assert len(list(tail.new_events())) == 1
    assert list(tail.new_events()) == []


def test_tail_skips_an_earlier_process_and_follows_a_replaced_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(finished(1) * 3)
    tail = headless.EventTail(path)
    assert list(tail.new_events()) == []
    replacement = tmp_path / "new"
    replacement.write_text(finished(2))
    replacement.replace(path)
    assert [event.step for event in tail.new_events() if isinstance(event, Finished)] == [2]


def test_terminal_line_is_rewritten() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = headless.Progress(10, stream)
    progress.show(IterationDone(
        time=1.0, step=4, rewards={"vividness": 0.93}, loss=0.0, grad_norm=0.0, ratio_drift=0.0, clipped_share=0.0,
        window_start=0, seconds=PhaseSeconds(sample=1, decode=0, score=0, train=1), num_forwards=1,
        num_trained_steps=1, eta_seconds=130,
    ))
    assert stream.getvalue() == "\r\x1b[2K4/10  vividness 0.93  2.0 s an iteration  2 min left"
    image = SampleImage(index=0, prompt="p", seed=1, path="p.png", rewards={})
    for step, value in ((0, 0.8), (5, 1.2)):
        progress.show(SamplesDrawn(time=1.0, step=step, images=(image,), rewards={"vividness": value}, seconds=1.0))
    assert stream.getvalue().endswith("Step 5, held-out prompts: vividness 0.80 → 1.20 (+50 %)\n")
