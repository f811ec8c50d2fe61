"""Settings: round trips, and a sentence for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.catalogue import MODEL_INFO
from engine.models import MODELS
from engine.presets import PRESETS
from engine.settings import RewardSettings, RunSettings
from engine.settings_text import SettingsError, from_yaml, read_settings


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_yaml(name: str) -> None:
    settings = PRESETS[name].make()
    assert from_yaml(settings.to_yaml()) == settings
    assert from_yaml(settings.to_yaml()).digest() == settings.digest()


def test_a_reward_is_written_without_the_options_it_lacks() -> None:
    """As before there were options: old rows and files read as they did, and keep their digest."""
    assert RewardSettings(name="vividness").model_dump(mode="json") == {"name": "vividness", "weight": 1.0}


def test_a_reward_may_be_used_twice_under_labels() -> None:
    settings = from_yaml("rewards: [{name: vividness}, {name: vividness, label: again, weight: 0, gate: 0.5}]")
    assert [reward.key for reward in settings.rewards] == ["vividness", "again"]
    assert from_yaml(settings.to_yaml()) == settings


def test_other_settings_have_another_digest() -> None:
    assert RunSettings(seed=1).digest() != RunSettings(seed=2).digest()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("colour: red", "Unknown setting `colour`"),
        ("sampling: {num_step: 5}", "Unknown setting `sampling.num_step`"),
        ("window: {size: 40}", "use a window of at most 24 steps"),
        ("window: {start: 30}", "the last possible position is 19"),
        ("window: {start: 5, last: 3}", "must be between window.start (5) and 19"),
        ("rewards: []", "at least one reward"),
        ("rewards: [{name: vividness, weight: 0}]", "All reward weights are zero"),
        ("rewards: [{name: vividness}, {name: vividness}]", "may be named once"),
        ("rewards: [{name: vividness, label: a}, {name: composition, label: a}]", "may be named once"),
        ("rewards: [{name: vividness, label: composition}]", "`label` is the name of another reward"),
        ("rewards: [{name: vividness, weights: there}]", "the reward vividness takes no `weights`; remove it."),
        ("rewards: [{name: function}]", "the reward function needs `function`; add it."),
        ("rewards: [{name: function, function: 'os; x'}]", "`rewards.0.function`"),
        ("rewards: [{name: vividness, function: mine}]", "the reward vividness takes no `function`; remove it."),
        ("rewards: [{name: vividness, server: {url: 'http://x'}}]", "the reward vividness takes no `server`"),
        ("rewards: [{name: vividness, server: {url: 'file:///etc'}}]", "give an http:// or https:// address"),
        ("rewards: [{name: vividness, server: {url: 'http://a:b@c'}}]", "an address without a password"),
        ("rewards: [{name: vividness, judge: {style: question, rubric: x}}]", "takes no rubric"),
        ("rewards: [{name: vividness, judge: {questions: [x]}}]", "takes no questions"),
        ("rewards: [{name: vividness, judge: {lowest: 3, highest: 3}}]", "must be below highest"),
        ("rewards: [{name: vividness, colour: red}]", "Unknown setting `rewards.0.colour`"),
        ("rewards: [{name: beauty}]", "`rewards.0.name`"),
        ("rewards: [{weight: 1}]", "`rewards.0.name` is missing"),
        ("sampling: {shared_noise: false}", "sampling.shared_prefix needs"),
        ("grpo: {updates_per_iteration: 999}", "only 48 images"),
        ("grpo: {updates_per_iteration: 20, best_and_worst: 2}", "only 16 images"),
        ("grpo: {best_and_worst: 7}", "use at most 6"),
        ("method: nft", "turn sampling.shared_noise and sampling.shared_prefix off"),
        (
            "{method: nft, nft: {timesteps_per_image: 30}, sampling: {shared_noise: false, shared_prefix: false}}",
            "only 25 sampling steps",
        ),
        ("compute: {num_processes: 5}", "grpo.prompts_per_iteration is only 4"),
        ("compute: {num_processes: 2, sharding: fsdp}", 'is for tuning.method "full"'),
        ("{compute: {num_processes: 3, sharding: fsdp}, tuning: {method: full}}", "must be a multiple of"),
        ("flash: {solver: euler}", "`flash.solver`"),
        ("flash: {solver: unipc, solver_type: heun}", "`flash`: unipc has no variant heun"),
        ("flash: {solver_type: bh1}", "choose midpoint or heun, or leave it empty."),
        ("flash: {solver: deis, solver_type: bh2}", "deis has no variant bh2 (solver_type); leave it empty."),
        ("iterations: 0", "`iterations`"),
        ("sampling: {eta: .nan}", "`sampling.eta`"),
        ("iterations: [", "not valid YAML"),
        ("", "list of `key: value` lines"),
        ("- 3", "list of `key: value` lines"),
    ],
)
def test_a_mistake_gets_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=r"(?s).") as caught:
        from_yaml(text)
    assert sentence in str(caught.value)


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml cannot be read: No such file"):
        read_settings(tmp_path / "nowhere.yaml")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: café".encode("latin-1"))
    with pytest.raises(SettingsError, match="not UTF-8"):
        read_settings(latin)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("colour: red")
    with pytest.raises(SettingsError, match=r"wrong\.yaml"):
        read_settings(wrong)


def test_every_model_has_an_adapter_and_facts() -> None:
    assert MODELS.keys() == MODEL_INFO.keys()
