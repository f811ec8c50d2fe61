"""The installations these tests run on."""

from tests.installations import bare_config, config, database, either_config, either_database, migrated_postgres

__all__ = ["bare_config", "config", "database", "either_config", "either_database", "migrated_postgres"]
