"""Runs migrations on the connection that `langmerge.results.migrate` gives."""

from alembic import context

from langmerge.results.schema import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
