"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "decisions",
        sa.Column("signature", sa.String(length=32), nullable=False),
        sa.Column("target", sa.String(length=32), nullable=False),
        sa.Column("mode", sa.String(length=8), nullable=False),
        sa.Column("labels", sa.String(length=8), nullable=False),
        sa.Column("choice", sa.Text(), nullable=False),
        sa.Column("run", sa.String(length=32), nullable=True),
        sa.Column("created", sa.String(length=32), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("signature", name=op.f("pk_decisions")),
    )
    op.create_table(
        "runs",
        sa.Column("signature", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("target", sa.String(length=32), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=True),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("sources", sa.JSON(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("finished", sa.String(length=32), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("signature", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_target"), "runs", ["target"])
    op.create_table(
        "sweeps",
        sa.Column("signature", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("created", sa.String(length=32), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("signature", name=op.f("pk_sweeps")),
    )
    op.create_table(
        "cells",
        sa.Column("signature", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("run", sa.String(length=32), nullable=True),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("target", sa.String(length=32), nullable=False),
        sa.Column("mode", sa.String(length=8), nullable=False),
        sa.Column("selector", sa.String(length=32), nullable=True),
        sa.Column("k", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("gain", sa.JSON(), nullable=True),
        sa.Column("effect", sa.JSON(), nullable=True),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("finished", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.signature"], name=op.f("fk_cells_run")),
        sa.PrimaryKeyConstraint("signature", name=op.f("pk_cells")),
    )
    op.create_index(op.f("ix_cells_run"), "cells", ["run"])
    op.create_index("ix_cells_what", "cells", ["target", "mode", "name"])
    op.create_table(
        "coefficients",
        sa.Column("run", sa.String(length=32), nullable=False),
        sa.Column("group", sa.String(length=255), nullable=False),
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.signature"], name=op.f("fk_coefficients_run")),
        sa.PrimaryKeyConstraint("run", "group", "source", name=op.f("pk_coefficients")),
    )
    op.create_table(
        "plans",
        sa.Column("sweep", sa.String(length=32), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("cell", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["sweep"], ["sweeps.signature"], name=op.f("fk_plans_sweep")),
        sa.PrimaryKeyConstraint("sweep", "place", name=op.f("pk_plans")),
    )
    op.create_index(op.f("ix_plans_cell"), "plans", ["cell"])
    op.create_table(
        "scores",
        sa.Column("run", sa.String(length=32), nullable=False),
        sa.Column("split", sa.String(length=32), nullable=False),
        sa.Column("signature", sa.String(length=32), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("accuracy", sa.Float(), nullable=False),
        sa.Column("low", sa.Float(), nullable=False),
        sa.Column("high", sa.Float(), nullable=False),
        sa.Column("macro_f1", sa.Float(), nullable=True),
        sa.Column("logits", sa.Text(), nullable=True),
        sa.Column("ids", sa.String(length=32), nullable=False),
        sa.Column("right", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["run"], ["runs.signature"], name=op.f("fk_scores_run")),
        sa.PrimaryKeyConstraint("run", "split", name=op.f("pk_scores")),
    )
