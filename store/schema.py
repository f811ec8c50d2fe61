"""The database's shape: brought up to this version's migrations, in one transaction, by one process at a time."""

from __future__ import annotations

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from store.config import PROJECT_ROOT, Config
from store.database import make_engine

# Any constant will do, as long as every version of this program takes the same lock.
_MIGRATION_LOCK = 7_021_911


class SchemaError(RuntimeError):
    """The database cannot be used by this version, in a sentence for its owner."""


def upgrade(config: Config) -> None:
    """Bring the database up to date, making it if there is none; a crash half-way leaves it as it was.

    Raises SchemaError if it cannot be reached, or was made by a newer version.
    """
    config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = make_engine(config.database)
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            _upgrade(connection)
    except OperationalError as error:
        reason = str(error.orig).strip().partition("\n")[0]
        raise SchemaError(f"The database cannot be opened: {reason}. Check PALATE_DATABASE_URL.") from error
    finally:
        engine.dispose()


def migration_config(connection: Connection) -> AlembicConfig:
    """Alembic's configuration, working on an open connection."""
    alembic = AlembicConfig(attributes={"connection": connection})
    alembic.set_main_option("script_location", str(PROJECT_ROOT / "migrations"))
    return alembic


def _upgrade(connection: Connection) -> None:
    alembic = migration_config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(alembic).walk_revisions()}
    current = set(MigrationContext.configure(connection).get_current_heads())
    if not current <= known:
        raise SchemaError(
            "The database was made by a newer version of Palate; install that version again, or set PALATE_HOME to "
            "another folder."
        )
    command.upgrade(alembic, "head")
