"""The store's tables. A change here is a new file in `migrations/versions`; a test compares the two."""

from sqlalchemy import (
    JSON,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

HEAD = "0001"
"""Version of these tables: name of the last migration."""

SIGNATURE = String(32)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

sweeps = Table(
    "sweeps", metadata,
    Column("signature", SIGNATURE, primary_key=True),
    Column("name", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("base", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("created", String(32), nullable=False),
    Column("record", JSON, nullable=False),
)  # fmt: skip
"""What was asked for: a grid, and what it was carried out on."""

runs = Table(
    "runs", metadata,
    Column("signature", SIGNATURE, primary_key=True),
    Column("name", Text, nullable=False),
    Column("target", String(32), nullable=False, index=True),
    Column("task", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("method", Text),
    Column("parameters", JSON, nullable=False),
    Column("sources", JSON, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("finished", String(32), nullable=False),
    Column("seconds", Float, nullable=False),
)  # fmt: skip
"""One model (a merge, an expert) or one combination of models' predictions, on one target."""

scores = Table(
    "scores", metadata,
    Column("run", SIGNATURE, ForeignKey("runs.signature"), primary_key=True),
    Column("split", String(32), primary_key=True),
    Column("signature", SIGNATURE, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("accuracy", Float, nullable=False),
    Column("low", Float, nullable=False),
    Column("high", Float, nullable=False),
    Column("macro_f1", Float),
    Column("logits", Text),
    Column("ids", SIGNATURE, nullable=False),
    Column("right", LargeBinary),
)  # fmt: skip
"""A run's numbers on a split, which rows it has right (a bit each), and where each example's logits lie."""

coefficients = Table(
    "coefficients", metadata,
    Column("run", SIGNATURE, ForeignKey("runs.signature"), primary_key=True),
    Column("group", String(255), primary_key=True),
    Column("source", String(255), primary_key=True),
    Column("value", Float, nullable=False),
)  # fmt: skip
"""What each source was multiplied by, by model, block or tensor."""

cells = Table(
    "cells", metadata,
    Column("signature", SIGNATURE, primary_key=True),
    Column("state", String(8), nullable=False),
    Column("reason", Text),
    Column("run", SIGNATURE, ForeignKey("runs.signature"), index=True),
    Column("kind", String(32), nullable=False),
    Column("target", String(32), nullable=False),
    Column("mode", String(8), nullable=False),
    Column("selector", String(32)),
    Column("k", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("gain", JSON),
    Column("effect", JSON),
    Column("seconds", Float, nullable=False),
    Column("finished", String(32), nullable=False),
)  # fmt: skip
"""A place in a grid, done or failed: which run it came to, and that run beside the place's own references."""

plans = Table(
    "plans", metadata,
    Column("sweep", SIGNATURE, ForeignKey("sweeps.signature"), primary_key=True),
    Column("place", Integer, primary_key=True),
    Column("cell", SIGNATURE, nullable=False, index=True),
)  # fmt: skip
"""The cells of a sweep, in order; two sweeps may share some. A cell that is not there is still to be done."""

decisions = Table(
    "decisions", metadata,
    Column("signature", SIGNATURE, primary_key=True),
    Column("target", String(32), nullable=False),
    Column("mode", String(8), nullable=False),
    Column("labels", String(8), nullable=False),
    Column("choice", Text, nullable=False),
    Column("run", SIGNATURE),
    Column("created", String(32), nullable=False),
    Column("record", JSON, nullable=False),
)  # fmt: skip
"""What `auto` decided, with its whole record."""

Index("ix_cells_what", cells.c.target, cells.c.mode, cells.c.name)
