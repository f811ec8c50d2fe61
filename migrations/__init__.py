"""The database's history, one file a change, run by Alembic (`store.schema.upgrade`)."""
