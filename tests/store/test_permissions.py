"""What a run made in the workbench may name: nothing by `..`, by links, or by whole paths out of the operator's."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.settings import ModelSettings, RunSettings
from store.config import Config
from store.permissions import Permissions


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    """Two roots; beside them a secret, to which a link leads."""
    first, second = tmp_path / "models", tmp_path / "more"
    for folder in (first / "flux", second / "lora", tmp_path / "secret", tmp_path / "models-not"):
        folder.mkdir(parents=True)
    (first / "out").symlink_to(tmp_path / "secret")
    (first / "in").symlink_to(first / "flux")
    (first / "circle").symlink_to(first / "circle")
    return first, second


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("flux", "models/flux"), ("lora", "more/lora"), ("in", "models/flux"), ("flux/../flux/", "models/flux"),
        ("{root}/flux", "models/flux"), ("{root}/../more/lora", "more/lora"), (".", "models"),
    ],
)  # fmt: skip
def test_what_may_be_named(roots: tuple[Path, Path], tmp_path: Path, named: str, found: str) -> None:
    model = ModelSettings(folder=named.format(root=roots[0]))
    assert Permissions(model_roots=roots).checked_model(model).folder == str(tmp_path / found)


@pytest.mark.parametrize(
    "named",
    ["/etc/passwd", "/etc/nothing-of-that-name", "../secret", "flux/../../secret", "out", "out/deeper",
     "{root}/../secret", "{root}-not", "circle", "circle/x", "a\x00b", "~", "/proc/self/environ", "/", "x" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("setting", ["folder", "start_from"])
def test_what_may_not(roots: tuple[Path, Path], named: str, setting: str) -> None:
    model = ModelSettings.model_validate({setting: named.format(root=roots[0])})
    with pytest.raises(ValueError, match=rf"model\.{setting} names (?s:.*)(outside the model folders|is not there)"):
        Permissions(model_roots=roots).checked_model(model)


def test_a_refusal_does_not_tell_what_is_there(roots: tuple[Path, Path], tmp_path: Path) -> None:
    said = []
    for name in ("secret", "absent"):
        with pytest.raises(ValueError) as refused:
            Permissions(model_roots=roots).checked_model(ModelSettings(folder=str(tmp_path / name)))
        said.append(str(refused.value).replace(name, ""))
    assert said[0] == said[1]


def test_a_root_may_itself_be_a_link(roots: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(roots[0])
    permissions = Permissions(model_roots=(tmp_path / "link",))
    assert permissions.checked_model(ModelSettings(folder="flux")).folder == str(roots[0] / "flux")


@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [((), False), (("*",), True), (("org/*",), True), (("org/name",), True), (("org/Name", "orgs/*"), False)],
)
def test_hub_ids(patterns: tuple[str, ...], allowed: bool) -> None:
    permissions = Permissions(hub_models=patterns)
    settings = (
        RunSettings.model_validate({"model": {"hub_id": "org/name"}}),
        RunSettings.model_validate({"rewards": [{"name": "hpsv2", "weights": "org/name"}]}),
    )
    for asked in settings:
        if allowed:
            assert permissions.checked(asked) == asked
        else:
            with pytest.raises(ValueError, match=r"names org/name of the hub.*PALATE_HUB_MODELS"):
                permissions.checked(asked)


def test_weights_of_a_reward_may_lie_in_a_model_folder(roots: tuple[Path, Path]) -> None:
    (roots[1] / "lora" / "hps").mkdir()
    for named, found in (("lora/hps", roots[1] / "lora" / "hps"), (str(roots[0] / "flux"), roots[0] / "flux")):
        settings = RunSettings.model_validate({"rewards": [{"name": "hpsv2", "weights": named}]})
        checked = Permissions(model_roots=roots, hub_models=("*",)).checked(settings)
        assert checked.rewards[0].weights == str(found)


def test_an_installation_permits_its_own_models_and_no_code(tmp_path: Path) -> None:
    permissions = Permissions.of(Config(home=tmp_path))
    assert permissions == Permissions(False, (tmp_path / "models",), ("*",))


def test_only_listed_reward_servers_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RunSettings.model_validate({"rewards": [{"name": "http", "server": {"url": "http://127.0.0.1:9000/a"}}]})
    monkeypatch.setenv("PALATE_REWARD_SERVERS", "http://127.0.0.1:9001")
    with pytest.raises(ValueError, match=r"The server http://127\.0\.0\.1:9000 is not allowed: have the operator add"):
        Permissions().checked(settings)
    monkeypatch.setenv("PALATE_REWARD_SERVERS", "http://127.0.0.1:9000")
    assert Permissions().checked(settings) == settings
