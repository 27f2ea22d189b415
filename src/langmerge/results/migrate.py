"""Bring a store's tables up to date."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from langmerge.errors import StoreError

FOLDER = Path(__file__).with_name("migrations")


def configuration() -> Config:
    """Alembic's, without a file."""
    config = Config()
    # A percent sign in a path would be taken for a reference.
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config


def upgrade(engine: sa.Engine, name: str) -> None:
    """Do what is missing, in one transaction.

    Raises:
        StoreError: the tables were made by a newer version, or are something else's.
    """
    config = configuration()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # Two processes that find an empty database at once: the second waits, and finds it made.
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7021918)"))
        found = MigrationContext.configure(connection).get_current_revision()
        if found is not None and found not in known:
            raise StoreError(
                f"store {name} has tables of version {found}, made by a newer langmerge: update langmerge"
            )
        if found is None and (others := sorted(set(sa.inspect(connection).get_table_names()))):
            raise StoreError(
                f"{name} is a database of something else: it has tables {', '.join(others[:5])}; name another place"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
