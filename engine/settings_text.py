"""Settings from text a person wrote, and a sentence for every mistake in it (torch-free)."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from engine.settings import RunSettings


class SettingsError(ValueError):
    """A settings text that cannot be used, in sentences for a person."""


def explain(error: ValidationError) -> str:
    """One sentence a mistake: where it is and what is wrong with it."""
    return "\n".join(_explain_one(item["loc"], item["type"], item["msg"]) for item in error.errors())


def _explain_one(location: tuple[int | str, ...], kind: str, message: str) -> str:
    where = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        return f"Unknown setting `{where}`; check its spelling, or remove it."
    if kind == "missing":
        return f"`{where}` is missing; add it."
    message = message.removeprefix("Value error, ")
    return f"`{where}`: {message}." if where else message


def parse_settings(data: object) -> RunSettings:
    """Settings from plain data. Raises SettingsError with one sentence for each mistake."""
    if not isinstance(data, dict):
        raise SettingsError("The settings must be a list of `key: value` lines, such as `palate presets NAME` prints.")
    try:
        return RunSettings.model_validate(data)
    except ValidationError as error:
        raise SettingsError(explain(error)) from error


def from_yaml(text: str) -> RunSettings:
    """Settings from YAML. Raises SettingsError with one sentence for each mistake."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"The settings are not valid YAML: {error}".replace("\n", " ")) from error
    return parse_settings(data)


def read_settings(path: Path) -> RunSettings:
    """Settings from a YAML file. Raises SettingsError, naming the file, if it cannot be read or used."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        return from_yaml(text)
    except SettingsError as error:
        raise SettingsError(f"{path}:\n{error}") from error
