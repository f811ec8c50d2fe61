"""`palate rewards score`: one image, a line a reward, a score or what it lacks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from engine.catalogue import REWARD_INFO
from engine.process import main
from engine.requests import ScoringRequest
from engine.trying import try_rewards


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGBA", (32, 16), (255, 0, 0, 255)).save(path)
    return path


def tried(request: ScoringRequest) -> tuple[bool, dict[str, str]]:
    lines: list[str] = []
    any_scored = try_rewards(request, lines.append)
    return any_scored, {line.split("  ")[0]: line for line in lines}


def test_every_reward_has_a_line_where_none_is_named(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.trying.what_lacks", lambda name: "no weights" if name in ("ocr", "pickscore") else "")
    few = {name: REWARD_INFO[name] for name in ("composition", "vividness", "ocr", "pickscore", "http")}
    monkeypatch.setattr("engine.trying.REWARD_INFO", few)
    any_scored, lines = tried(ScoringRequest(image=image, prompt="a cat on a mat"))
    assert any_scored and list(lines) == list(few)
    # By hand: 0.3·√(255² + 127.5²) in hundredths.
    assert re.fullmatch(r"vividness    0\.8553  \(\d+\.\d ms\)", lines["vividness"])
    assert lines["pickscore"].endswith("no score: no weights")
    assert "cannot judge the prompt" in lines["composition"]
    assert "the reward http needs `server`; add it (in a settings file, given with --settings)" in lines["http"]


def test_rewards_of_settings_have_their_options_and_labels(image: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "rewards: [{name: vividness, label: colour}, {name: function, function: 'nowhere_at_all:score'}]"
    )
    any_scored, lines = tried(ScoringRequest(image=image, settings=tmp_path / "run.yaml"))
    assert any_scored and "0.8553" in lines["colour"]
    assert "nowhere_at_all:score cannot be loaded" in lines["function"]
    _, lines = tried(ScoringRequest(image=image, settings=tmp_path / "run.yaml", rewards=("vividness", "colour")))
    assert list(lines) == ["vividness", "colour"]


@pytest.mark.parametrize(("rewards", "file", "sentence"), [
    (["vividnes"], "red.png", "There is no reward named vividnes; choose among: composition, "),
    (["vividness"], "nowhere.png", "nowhere.png cannot be read as an image."),
    (["http"], "red.png", "No reward gave a score."),
])  # fmt: skip
def test_mistakes_end_in_a_sentence(
    image: Path, capsys: pytest.CaptureFixture[str], rewards: list[str], file: str, sentence: str
) -> None:
    request = ScoringRequest(image=image.with_name(file), rewards=tuple(rewards))
    assert main(["score", "--request", request.model_dump_json()]) == 2
    assert sentence in capsys.readouterr().err


def test_the_command_scores(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = ScoringRequest(image=image, rewards=("vividness", "compressibility"), device="cpu")
    assert main(["score", "--request", request.model_dump_json()]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["vividness", "compressibility"]
