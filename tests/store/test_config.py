from pathlib import Path

import pytest
from pydantic import SecretStr

from store.config import PROJECT_ROOT, Config, ConfigError, load_config


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PALATE_HOME")
    config = load_config()
    assert config.home == PROJECT_ROOT / ".palate"
    assert config.database == f"sqlite:///{PROJECT_ROOT}/.palate/palate.db"
    assert (config.broker, config.host, config.port) == ("filesystem://", "127.0.0.1", 8501)
    assert (config.lease_seconds, config.heartbeat_seconds, config.reap_seconds, config.dispatch_seconds) == (
        60.0, 10.0, 15.0, 5.0,
    )  # fmt: skip


def test_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALATE_HOME", "here")
    assert load_config().home == tmp_path / "here"


def test_models_that_runs_may_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PALATE_HOME", str(tmp_path))
    assert (load_config().model_roots, load_config().hub_models) == ((tmp_path / "models",), ("*",))
    monkeypatch.setenv("PALATE_MODEL_FOLDERS", f"{tmp_path}/a b:{tmp_path}/c/../d:")
    monkeypatch.setenv("PALATE_HUB_MODELS", "org/*, other/name")
    assert load_config().model_roots == (tmp_path / "a b", tmp_path / "d")
    assert load_config().hub_models == ("org/*", "other/name")
    monkeypatch.setenv("PALATE_HUB_MODELS", "none")
    assert load_config().hub_models == ()
    assert load_config().hub_push == ()
    monkeypatch.setenv("PALATE_HUB_PUSH", "org/*")
    assert load_config().hub_push == ("org/*",)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PALATE_PORT", "many", "PALATE_PORT: "),
        ("PALATE_PORT", "70000", "PALATE_PORT: "),
        ("PALATE_DATABASE_URL", "mysql://x/y", "PALATE_DATABASE_URL: use sqlite"),
        ("PALATE_DATABASE_URL", "nonsense", "PALATE_DATABASE_URL: use sqlite"),
        ("PALATE_BROKER_URL", "kafka://x", "PALATE_BROKER_URL: use filesystem"),
        ("PALATE_LEASE_SECONDS", "5", "PALATE_HEARTBEAT_LOSS_SECONDS, and that below PALATE_LEASE_SECONDS"),
        ("PALATE_LEASE_SECONDS", "nan", "PALATE_LEASE_SECONDS: "),
        ("PALATE_MODEL_FOLDERS", "models", "PALATE_MODEL_FOLDERS: name whole paths, apart by ':'"),
        ("PALATE_HUB_MODELS", "org", "PALATE_HUB_MODELS: list ids such as"),
        ("PALATE_ENGINE_COMMAND", "python -m engine", "PALATE_ENGINE_COMMAND is not a JSON list"),
    ],
)
def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refused:
        load_config()
    assert says in str(refused.value)


def test_a_password_is_neither_shown_nor_in_a_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(database_url=SecretStr("postgresql+psycopg://me:canary@host/db"))
    assert "canary" not in repr(config) + str(config.model_dump_json())
    monkeypatch.setenv("PALATE_BROKER_URL", "kafka://me:canary@host")
    with pytest.raises(ConfigError) as refused:
        load_config()
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(("variable", "url", "module", "extra"), [
    ("PALATE_DATABASE_URL", "postgresql+psycopg://u:canary@127.0.0.1/x", "psycopg", "postgres"),
    ("PALATE_DATABASE_URL", "postgresql://u:canary@127.0.0.1/x", "psycopg", "postgres"),
    ("PALATE_BROKER_URL", "redis://:canary@127.0.0.1:6379/0", "redis", "redis"),
    ("PALATE_BROKER_URL", "rediss://:canary@127.0.0.1:6379/0", "redis", "redis"),
])  # fmt: skip
def test_a_service_without_its_client_names_the_command(
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str, module: str, extra: str
) -> None:
    monkeypatch.setenv(variable, url)
    load_config()
    monkeypatch.setattr("store.config.find_spec", lambda name: None if name == module else object())
    with pytest.raises(ConfigError) as refused:
        load_config()
    command = f'`.venv/bin/pip install -c constraints.txt -e ".[{extra}]"`'
    assert f"({module}); install it with {command}" in str(refused.value)
    assert variable in str(refused.value) and "canary" not in str(refused.value)
