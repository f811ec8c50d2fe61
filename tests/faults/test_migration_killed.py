"""A process killed half-way through a migration leaves the database as it was; the next one migrates it."""

import signal
import subprocess
import sys

from sqlalchemy import create_engine, inspect

from store.config import Config
from store.schema import upgrade
from tests.installations import environment_of

PROGRAM = """
import os, signal
from alembic import op
from store.config import load_config
from store.schema import upgrade

real, made = op.create_table, []

def create_table(name, *columns, **options):
    made.append(name)
    if len(made) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(name, *columns, **options)

op.create_table = create_table
upgrade(load_config())
"""


def test_killed_half_way(bare_config: Config) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment_of(bare_config), timeout=240, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    engine = create_engine(bare_config.database)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == []
    upgrade(bare_config)
    with engine.connect() as connection:
        assert "job" in inspect(connection).get_table_names()
    engine.dispose()
