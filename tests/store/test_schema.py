import threading

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import create_engine, insert, inspect, text

from store.config import Config
from store.database import Database, make_engine
from store.results import metrics_of
from store.schema import SchemaError, migration_config, upgrade
from store.tables import Metric, Table
from tests.installations import queue_run


def test_migrations_make_what_the_tables_say(bare_config: Config) -> None:
    upgrade(bare_config)
    engine = make_engine(bare_config.database)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []
    engine.dispose()


def test_twice_is_once(bare_config: Config) -> None:
    upgrade(bare_config)
    upgrade(bare_config)


def test_there_and_back(bare_config: Config) -> None:
    upgrade(bare_config)
    engine = make_engine(bare_config.database)
    with engine.begin() as connection:
        command.downgrade(migration_config(connection), "base")
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    engine.dispose()


def test_iterations_from_before_spreads_were_kept_are_read(bare_config: Config) -> None:
    upgrade(bare_config)
    database = Database(bare_config)
    run_id, _ = queue_run(database)
    row = {
        column.name: 1 for column in Metric.__table__.columns if column.name not in {"run_id", "rewards", "spreads"}
    }
    engine = make_engine(bare_config.database)
    with engine.begin() as connection:
        command.downgrade(migration_config(connection), "0003")
        connection.execute(insert(Metric.__table__).values(run_id=run_id, rewards={"vividness": 0.5}, **row))
    engine.dispose()
    upgrade(bare_config)
    with database.read() as session:
        (read,) = metrics_of(session, run_id)
    database.dispose()
    assert (read.rewards, read.spreads) == ({"vividness": 0.5}, {})


def test_all_at_once(bare_config: Config) -> None:
    """The workbench and its worker may both find an empty database."""
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            upgrade(bare_config)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_newer_database_is_refused(bare_config: Config) -> None:
    upgrade(bare_config)
    engine = make_engine(bare_config.database)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(SchemaError, match="made by a newer version"):
        upgrade(bare_config)


def test_a_database_that_is_away(config: Config) -> None:
    away = config.model_copy(update={"database_url": SecretStr("postgresql+psycopg://me:canary@127.0.0.1:1/db")})
    with pytest.raises(SchemaError, match="cannot be opened") as refused:
        upgrade(away)
    assert "canary" not in str(refused.value)


def test_a_migration_that_is_cut_off_leaves_nothing(bare_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    real, made = op.create_table, []

    def create_table(name: str, *columns: object, **options: object) -> object:
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(name)
        return real(name, *columns, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(op, "create_table", create_table)
    with pytest.raises(KeyboardInterrupt):
        upgrade(bare_config)
    monkeypatch.undo()
    engine = create_engine(bare_config.database)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == []
    engine.dispose()
    upgrade(bare_config)
