from pathlib import Path

import pytest

from store import files
from store.config import Config


@pytest.mark.parametrize(
    "path", ["../outside", "runs/../../outside", "/etc/passwd", "", ".", "runs/..", "a\x00b", "runs/../.."]
)
def test_a_path_cannot_lead_out(config: Config, path: str) -> None:
    with pytest.raises(files.OutsideError):
        files.resolve(config, path)


def test_nor_by_a_link(config: Config, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    config.home.mkdir()
    (config.home / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(files.OutsideError):
        files.resolve(config, "link")


def test_a_path_inside(config: Config) -> None:
    path = files.resolve(config, "runs/a/1/samples/x.png")
    assert path == config.home / "runs/a/1/samples/x.png"
    assert files.relative_to_home(config, path) == "runs/a/1/samples/x.png"
    with pytest.raises(files.OutsideError):
        files.relative_to_home(config, Path("/etc/passwd"))


def test_a_run_cannot_name_another_folder(config: Config) -> None:
    assert files.epoch_folder(config, "abc", 3) == config.home / "runs" / "abc" / "3"
    for run_id in ("..", "../..", "", "/tmp"):
        with pytest.raises(files.OutsideError):
            files.run_folder(config, run_id)


@pytest.mark.parametrize("path", ["/etc/passwd", "../2/x.png", "a/../../x", ""])
def test_an_engine_names_only_its_own_files(path: str) -> None:
    with pytest.raises(files.OutsideError):
        files.row_path("abc", 1, path)
    assert files.row_path("abc", 1, "samples/x.png") == "runs/abc/1/samples/x.png"


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    files.write_whole(tmp_path / "a" / "b.txt", "é")
    files.write_whole(tmp_path / "a" / "b.txt", "è")
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "è"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]
