"""A run on a hub's model is told its commit, once, so that it can go on, and be made again, from the same weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engine.models import model_folder, pinned
from engine.settings import RunSettings
from engine.settings_text import SettingsError, read_settings
from engine.whole_files import write_whole

SETTINGS_NAME = "settings.yaml"


def pin(settings: RunSettings, earlier: Iterable[Path]) -> RunSettings:
    """The settings with the commit of their hub model: that of the run's earlier folders, or what the hub says now.

    Raises ValueError with a sentence if the hub does not say.
    """
    if settings.model.hub_id is None:
        return settings
    for folder in earlier:
        try:
            before = read_settings(folder / SETTINGS_NAME).model
        except SettingsError:
            continue
        if before.hub_id == settings.model.hub_id:
            return _with_revision(settings, before.revision)
    return _with_revision(settings, pinned(settings.model).revision)


def for_ranks(settings: RunSettings, written: Path, folder: Path) -> Path:
    """The settings file for the ranks of a run: `written`, or with a hub's model one in `folder` that names its commit.

    That model is then on this machine: it is downloaded once.
    """
    if settings.model.hub_id is None:
        return written
    model_folder(settings.model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS_NAME
    write_whole(path, settings.to_yaml())
    return path


def _with_revision(settings: RunSettings, revision: str | None) -> RunSettings:
    return settings.model_copy(update={"model": settings.model.model_copy(update={"revision": revision})})
