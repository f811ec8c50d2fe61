"""Where things live and how patient the workers are: read once from PALATE_… environment variables."""

from __future__ import annotations

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as EnvironmentSettingsError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

PROJECT_ROOT = Path(__file__).resolve().parents[1]
_HUB_PATTERN = re.compile(r"\*|[\w.-]+/(?:\*|[\w.-]+)")
_BROKERS = ("filesystem", "memory", "redis", "rediss", "amqp", "amqps", "pyamqp")

Seconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class ConfigError(ValueError):
    """The environment asks for something impossible, in sentences for the person who set it."""


class Config(BaseSettings):
    """The installation: its data home, its database and broker, and the workers' times in seconds."""

    model_config = SettingsConfigDict(env_prefix="PALATE_", frozen=True, extra="forbid", env_ignore_empty=True)

    home: Path = Field(PROJECT_ROOT / ".palate", description="Folder of everything this installation keeps.")
    database_url: SecretStr = Field(SecretStr(""), description="SQLAlchemy URL; default SQLite under home.")
    broker_url: SecretStr = Field(SecretStr("filesystem://"), description="Celery broker URL.")
    host: str = Field("127.0.0.1", description="Address the workbench listens on.")
    port: int = Field(8501, ge=1, le=65535, description="Port the workbench listens on.")

    reward_functions: bool = Field(False, description="Runs made in the workbench may name Python functions.")
    model_folders: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Folders of models that runs made in the workbench may use; none = models under home."
    )
    hub_models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("*",), description='Hub models that runs made in the workbench may name: ids, OWNER/*, * = any, or "none".'
    )

    hub_push: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Hub models that exports made in the workbench may be sent to: ids, OWNER/*, * = any."
    )

    lease_seconds: Seconds = Field(60.0, description="A job whose worker is silent this long goes to another.")
    heartbeat_seconds: Seconds = Field(10.0, description="Between two heartbeats.")
    heartbeat_loss_seconds: Seconds = Field(40.0, description="A worker that cannot heartbeat so long ends its engine.")
    reap_seconds: Seconds = Field(15.0, description="Between two looks for jobs whose lease ran out.")
    dispatch_seconds: Seconds = Field(5.0, description="Between two rings for jobs that still wait.")
    poll_seconds: Seconds = Field(0.25, description="Between two looks at the engine's events.")
    peek_seconds: Seconds = Field(1.0, description="Between two looks for a request to cancel.")
    stop_grace_seconds: Seconds = Field(90.0, description="An engine may take so long to write its checkpoint and end.")
    stall_seconds: Seconds = Field(900.0, description="An engine silent so long is reported in the run's log.")
    engine_command: tuple[str, ...] = Field(
        (sys.executable, "-m", "engine.process"), min_length=1, description="How the engine is started (JSON list)."
    )

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().resolve()

    @field_validator("model_folders", mode="before")
    @classmethod
    def _folders_apart_by_colons(cls, folders: object) -> object:
        return [part for part in folders.split(os.pathsep) if part.strip()] if isinstance(folders, str) else folders

    @field_validator("model_folders")
    @classmethod
    def _absolute_folders(cls, folders: tuple[Path, ...]) -> tuple[Path, ...]:
        found = tuple(folder.expanduser() for folder in folders)
        if not all(folder.is_absolute() for folder in found):
            raise ValueError(f"name whole paths, apart by {os.pathsep!r}, such as /srv/models{os.pathsep}/data/loras")
        return tuple(folder.resolve() for folder in found)

    @field_validator("hub_models", "hub_push", mode="before")
    @classmethod
    def _patterns_apart_by_commas(cls, patterns: object) -> object:
        if not isinstance(patterns, str):
            return patterns
        found = [part for part in re.split(r"[,\s]+", patterns) if part]
        return [] if found == ["none"] else found

    @field_validator("hub_models", "hub_push")
    @classmethod
    def _known_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_HUB_PATTERN.fullmatch(pattern) for pattern in patterns):
            raise ValueError("list ids such as black-forest-labs/FLUX.1-dev or stabilityai/*, or set it to none or *")
        return patterns

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value():
            return url
        try:
            name = make_url(url.get_secret_value()).get_backend_name()
        except ArgumentError:
            name = ""
        if name not in ("sqlite", "postgresql"):
            raise ValueError("use sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME")
        if name == "postgresql":
            _require("psycopg", "PostgreSQL", "postgres")
        return url

    @field_validator("broker_url")
    @classmethod
    def _known_broker(cls, url: SecretStr) -> SecretStr:
        scheme = url.get_secret_value().partition("://")[0]
        if scheme not in _BROKERS:
            raise ValueError("use filesystem://, redis://HOST:6379/0 or amqp://USER@HOST:5672//")
        if scheme in ("redis", "rediss"):
            _require("redis", "Redis", "redis")
        return url

    @model_validator(mode="after")
    def _patience(self) -> Self:
        if not self.heartbeat_seconds < self.heartbeat_loss_seconds < self.lease_seconds:
            raise ValueError(
                "PALATE_HEARTBEAT_SECONDS must be below PALATE_HEARTBEAT_LOSS_SECONDS, "
                "and that below PALATE_LEASE_SECONDS"
            )
        return self

    @property
    def model_roots(self) -> tuple[Path, ...]:
        """The folders that runs made in the workbench may take models from."""
        return self.model_folders or (self.home / "models",)

    @property
    def database(self) -> str:
        """The SQLAlchemy URL, secrets and all; never log it."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.home / 'palate.db'}"

    @property
    def broker(self) -> str:
        """The broker's URL, secrets and all; never log it."""
        return self.broker_url.get_secret_value()


def load_config() -> Config:
    """The configuration of the environment. Raises ConfigError with a sentence for each mistake."""
    try:
        return Config()
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item["loc"], item["msg"]) for item in error.errors())) from error
    except EnvironmentSettingsError as error:
        # Raised before validation, when a list-valued variable is not JSON.
        example = '["python", "-m", "engine.process"]'
        raise ConfigError(f"PALATE_ENGINE_COMMAND is not a JSON list such as {example}.") from error


def _require(module: str, service: str, extra: str) -> None:
    """Raise ValueError, with the command that installs it, unless the service's client is there."""
    if find_spec(module) is None:
        raise ValueError(
            f"{service} needs a package that is not installed here ({module}); install it with "
            f'`.venv/bin/pip install -c constraints.txt -e ".[{extra}]"`'
        )


def _explain(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"PALATE_{str(location[0]).upper()}: {message}." if location else f"{message}."
