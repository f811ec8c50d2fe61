"""Exports sent to a hub on this machine: what arrives, what is refused in words, and that no token stays anywhere."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
from huggingface_hub import constants

from engine import process
from engine.artifacts import push
from tests.engine.artifacts.fake_hub import FakeHub, fake_hub

# huggingface_hub's own way of sending large files to a hub without Xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
CANARY = "hf_canaryCanaryCanary1234567890"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(CANARY) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", CANARY)
        yield hub


@pytest.fixture
def export(tiny_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Exports and pushes; what was said, stderr if it failed."""

    def run(*more: str, name: str = "org/mine", out: str = "out") -> str:
        if not (tmp_path / "run").exists():
            tiny_run()
        capsys.readouterr()
        arguments = ["--run", str(tmp_path / "run"), "--format", "comfyui", "--out", str(tmp_path / out)]
        code = process.main(["export", *arguments, "--push", name, *more])
        said = capsys.readouterr()
        assert CANARY not in said.out + said.err
        assert code == (process.MISTAKE if said.err else 0)
        # What was made is told, whatever became of sending it.
        assert bool(said.out) == (tmp_path / out).exists()
        return said.err if code else said.out

    return run


def holds_canary(folder: Path) -> bool:
    return any(CANARY.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_what_was_exported_arrives_in_a_private_model(
    hub: FakeHub, export: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        said = export()
    assert said.endswith("It is on the hub as org/mine (private).\n")
    assert "Checked:" in said
    out = tmp_path / "out"
    written = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert hub.files == written
    assert {"README.md", "comfyui_lora.safetensors", "images/000.png"} <= written.keys()
    assert hub.private is True
    assert CANARY not in caplog.text
    assert not holds_canary(tmp_path)


def test_it_is_public_only_when_asked(hub: FakeHub, export: Callable[..., str]) -> None:
    assert "(public)" in export("--public")
    assert hub.private is False
    hub.files.clear()
    assert "already on the hub and public, so nothing was sent; add --public" in export(out="again")
    assert hub.files == {}


def test_a_token_without_rights_is_said(hub: FakeHub, export: Callable[..., str], tmp_path: Path) -> None:
    hub.refusal = 403
    said = export()
    assert "no right to write to org/mine; give it one with write access to org" in said
    assert "The export itself is in out." in said
    assert (tmp_path / "out" / "README.md").is_file()


def test_asked_last_the_hub_loses_nothing(
    hub: FakeHub, export: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "another"
    assert "does not know the token in HF_TOKEN" in export("--push-last", out="unknown.zip")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(push, "get_token", lambda: None)
    said = export("--push-last", out="none.zip")
    assert "needs a token with write access" in said and said.endswith("The export itself is in none.zip.\n")
    assert {"unknown.zip", "none.zip"} <= {path.name for path in tmp_path.iterdir()}
    assert hub.files == {}


def test_a_card_that_the_hub_finds_fault_with_is_said(hub: FakeHub, export: Callable[..., str]) -> None:
    hub.faults = [{"message": "licence unknown"}]
    assert "its check of the card failed. The export itself is in" in export()
    assert hub.files == {}


def test_mistakes_are_said_before_the_export(
    hub: FakeHub, export: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine", "a//b", "../mine", "a/b/c", "a/b..c"):
        assert f"No model on the hub could be called {name}; give" in export(name=name)
    assert "give --out a new folder" in export(out="mine.safetensors")
    hub.token = "another"
    assert "does not know the token in HF_TOKEN" in export()
    with socket.socket() as taken:  # nobody listens at a port that is only bound
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert "The hub cannot be reached" in export()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in export()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(push, "get_token", lambda: None)
    assert "needs a token with write access, in the environment variable HF_TOKEN or by `hf auth login`" in export()
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.txt", "run"}


def test_what_is_sent_of_an_archive_is_what_lies_in_it(
    hub: FakeHub, export: Callable[..., str], tmp_path: Path
) -> None:
    assert export(out="mine.zip").endswith("It is on the hub as org/mine (private).\n")
    with ZipFile(tmp_path / "mine.zip") as archive:
        assert hub.files == {name: archive.read(name) for name in archive.namelist()}
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.txt", "run", "mine.zip"}


def test_the_hubs_own_login_will_do(hub: FakeHub, export: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(push, "get_token", lambda: CANARY)
    assert "It is on the hub" in export()


def test_a_token_does_not_show(hub: FakeHub) -> None:
    assert CANARY not in repr(push.own_token())
    assert CANARY not in repr(vars(push.Hub("org/mine", push.own_token()))["_token"])
