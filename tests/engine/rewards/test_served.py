"""Rewards from servers on loopback: what is asked, what answers are worth, and what each kind of failure costs."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.events import Event, IterationDone, Message, SamplesDrawn
from engine.rewards import ScoredBatch, make_rewards, score_all
from engine.servers.allowed import KEYS_VARIABLE, SERVERS_VARIABLE
from engine.servers.check import check_server
from engine.settings import RewardSettings, RunSettings
from engine.train import train
from tests.loopback_server import Answer, Loopback, Stall, origin_of, serve

CANARY = "sk-canary-7f3a"
IMAGES = np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3) * 20
PROMPTS = [f"prompt {i}" for i in range(len(IMAGES))]


def reward_at(loopback: Loopback, name: str = "http", judge: dict[str, Any] | None = None, **server: Any) -> Any:
    given = {"name": name, "server": loopback.settings(**server).model_dump()} | ({"judge": judge} if judge else {})
    return RewardSettings.model_validate(given)


def scored(loopback: Loopback, monkeypatch: pytest.MonkeyPatch, **options: Any) -> ScoredBatch:
    monkeypatch.setenv(SERVERS_VARIABLE, origin_of(loopback))
    rewards = make_rewards([reward_at(loopback, **options)], torch.device("cpu"))
    return score_all(rewards, IMAGES, PROMPTS)


def pixel(encoded: str) -> int:
    """The red of an image's first pixel."""
    return Image.open(io.BytesIO(base64.b64decode(encoded.removeprefix("data:image/png;base64,")))).getpixel((0, 0))[0]


def brightness(asked: dict[str, Any]) -> dict[str, Any]:
    return {"scores": [pixel(image) / 200 for image in asked["images"]]}


# Palate's own protocol ------------------------------------------------------------------------------------------------


def test_every_image_is_scored_for_its_prompt_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(brightness) as loopback:
        result = scored(loopback, monkeypatch, batch_size=4, model="best")
        assert result.values["http"] == pytest.approx(np.arange(10) / 10)
        assert result.messages == ()
        asked = sorted((data for _, _, data in loopback.asked), key=lambda data: data["prompts"][0])
        assert [data["prompts"] for data in asked] == [PROMPTS[:4], PROMPTS[4:8], PROMPTS[8:]]
        assert {data["model"] for data in asked} == {"best"}


def test_requests_are_under_way_together_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    meet = threading.Barrier(2, timeout=5)

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        meet.wait()  # none answers before another has been asked
        return brightness(asked)

    with serve(answer) as loopback:
        result = scored(loopback, monkeypatch, batch_size=1, concurrency=2)
        assert loopback.most_at_once == 2
    assert np.isfinite(result.values["http"]).all()


FAULTS: dict[str, tuple[Answer, str]] = {
    "timeout": (lambda asked: Stall(), "did not answer within 0.2 s"),
    "500": (lambda asked: (500, {}, b"out of memory"), "status 500: out of memory"),
    "no list": (lambda asked: {"score": 1}, 'no list of "scores"'),
    "no object": (lambda asked: [1.0], 'no list of "scores"'),
    "too few": (lambda asked: {"scores": [0.5]}, "1 scores for 2 images"),
    "words": (lambda asked: {"scores": ["good", "bad"]}, "no number"),
    "truths": (lambda asked: {"scores": [True, False]}, "no number"),
    "lists": (lambda asked: {"scores": [[0.1], [0.2]]}, "no number"),
    "NaN": (lambda asked: b'{"scores": [NaN, Infinity]}', "not a number"),
    "null": (lambda asked: {"scores": [None, None]}, "not a number"),
    "too large": (lambda asked: {"scores": [10**400, -(10**400)]}, "not a number"),
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(("answer", "reason"), FAULTS.values(), ids=FAULTS.keys())
def test_a_failure_costs_the_images_of_its_request(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, reason: str
) -> None:
    def sometimes(asked: dict[str, Any]) -> Any:
        return answer(asked) if "prompt 4" in asked["prompts"] else brightness(asked)

    with serve(sometimes) as loopback:
        result = scored(loopback, monkeypatch, batch_size=2, timeout=0.2)
        assert len(loopback.asked) == 5, "what failed is not asked image by image"
    assert np.flatnonzero(np.isnan(result.values["http"])).tolist() == [4, 5]
    (message,) = result.messages
    assert message.startswith("The reward http could not score 2 of 10 images (") and reason in message


def test_a_server_that_is_gone_is_not_asked_about_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda asked: (503, {}, b"")) as loopback:
        result = scored(loopback, monkeypatch, batch_size=1, concurrency=2)
        assert len(loopback.asked) <= 3
    assert np.isnan(result.values["http"]).all()
    assert "10 of 10 images" in result.messages[0]


@pytest.mark.parametrize("answer", [lambda asked: (500, {}, b""), lambda asked: b'{"scores": [NaN]}'])
def test_a_run_stops_past_its_share_of_failed_scores(
    monkeypatch: pytest.MonkeyPatch, tiny_settings: RunSettings, tmp_path: Path, answer: Answer
) -> None:
    events: list[Event] = []
    with serve(answer) as loopback:
        monkeypatch.setenv(SERVERS_VARIABLE, origin_of(loopback))
        rewards = [reward_at(loopback).model_dump(), {"name": "vividness", "weight": 1.0}]
        settings = RunSettings.model_validate(tiny_settings.model_dump() | {"rewards": rewards})
        # The other reward's scores are all there, and do not hide it.
        with pytest.raises(ValueError, match=r"100% of the scores of the reward http failed .*Mend that; the run can"):
            train(settings, tmp_path, events.append)
    assert any("The reward http could not score" in event.text for event in events if isinstance(event, Message))
    assert not any(isinstance(event, IterationDone) for event in events)


def test_a_run_goes_on_below_it_and_counts(
    monkeypatch: pytest.MonkeyPatch, tiny_settings: RunSettings, tmp_path: Path
) -> None:
    events: list[Event] = []

    def half(asked: dict[str, Any]) -> dict[str, Any]:
        return {"scores": [pixel(image) / 255 if i % 2 else None for i, image in enumerate(asked["images"])]}

    with serve(half) as loopback:
        monkeypatch.setenv(SERVERS_VARIABLE, origin_of(loopback))
        monkeypatch.setenv(KEYS_VARIABLE, f"{origin_of(loopback)}={CANARY}")
        data = tiny_settings.model_dump() | {
            "rewards": [reward_at(loopback, batch_size=2).model_dump()], "guards": {"max_failed_share": 0.6},
            "iterations": 1,
        }  # fmt: skip
        train(RunSettings.model_validate(data), tmp_path, events.append)
        assert {headers["Authorization"] for _, headers, _ in loopback.asked} == {f"Bearer {CANARY}"}
    (done,) = [event for event in events if isinstance(event, IterationDone)]
    assert done.failed_scores == data["grpo"]["prompts_per_iteration"] * data["grpo"]["group_size"] // 2
    assert any(isinstance(event, SamplesDrawn) for event in events)
    # The key is in no artifact and no event.
    assert not any(CANARY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert CANARY not in "".join(event.model_dump_json() for event in events)


def test_a_server_that_is_not_listed_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVERS_VARIABLE, raising=False)
    with serve(brightness) as loopback:
        with pytest.raises(ValueError, match="is not allowed"):
            make_rewards([reward_at(loopback)], torch.device("cpu"))
        with pytest.raises(ValueError, match="is not allowed"):
            check_server(reward_at(loopback))
        assert loopback.asked == []


@pytest.fixture(scope="module")
def reference() -> Iterator[str]:
    """The address of the reference server of the guide."""
    program = Path(__file__).parents[3] / "docs" / "reward_server.py"
    with subprocess.Popen([sys.executable, str(program), "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def test_the_reference_server_of_the_guide(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVERS_VARIABLE, reference)
    settings = RewardSettings.model_validate({"name": "http", "server": {"url": reference, "batch_size": 3}})
    check_server(settings)
    result = score_all(make_rewards([settings], torch.device("cpu")), IMAGES, PROMPTS)
    assert result.values["http"] == pytest.approx(IMAGES[:, 0, 0, 0] / 255, abs=0.01)


def test_the_reference_server_refuses_what_is_no_request(reference: str) -> None:
    no_image = json.dumps({"images": ["!"], "prompts": ["a"]}).encode()
    for body in (b"", b"[]", no_image, b'{"images": [], "prompts": [1]}'):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(reference, body, timeout=5)
        assert refusal.value.code == 400
        refusal.value.close()
