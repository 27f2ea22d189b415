"""The store: SQLite beside the results, or PostgreSQL by URL; many processes may write at once."""

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url

from langmerge import __version__
from langmerge.errors import MissingExtraError, StoreError
from langmerge.results import schema
from langmerge.results.records import Cell, Outcome, Run, Scored, State, Sweep
from langmerge.results.study import Difference

STORE = "store.sqlite"
"""In a sweep's folder, where no other store is asked for."""

WAIT = 60.0
"""Seconds that a process waits for another to finish writing to SQLite."""

CHUNK = 500
"""Values in one question: databases bound their number."""


class Store:
    """Runs, cells, coefficients and decisions.

    Every write is one transaction: after a crash a result is there as a whole or not at all, and writing what is there
    already changes nothing.

    Args:
        place: a file (SQLite; made if it is not there), or a URL: `postgresql://user@host/name`.

    Raises:
        StoreError: it cannot be opened, or was made by a newer version.
        MissingExtraError: the driver of the database is not installed.
    """

    def __init__(self, place: str | Path) -> None:
        self.url = store_url(place)
        self._engine = _engine(self.url)
        self._writes = self._engine.execution_options(writes=True)
        try:
            self._ready()
        except (sa.exc.DatabaseError, OSError) as error:
            self.close()
            raise StoreError(f"store {self} cannot be opened: {_said(error)}") from None
        except StoreError:
            self.close()
            raise

    def __str__(self) -> str:
        return self.url.database or "" if self.is_file else self.url.render_as_string(hide_password=True)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    @property
    def is_file(self) -> bool:
        """Whether it is SQLite."""
        return self.url.get_backend_name() == "sqlite"

    def _ready(self) -> None:
        """Make the tables, or bring them up to date."""
        if self._version() == schema.HEAD:
            return
        from langmerge.results.migrate import upgrade

        if self.is_file and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.url.database}.lock"):
                upgrade(self._engine, str(self))
        else:
            upgrade(self._engine, str(self))

    def _version(self) -> str | None:
        if self.is_file and self.url.database and not Path(self.url.database).exists():
            return None
        with self._engine.connect() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            found = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
            return None if found is None else str(found)

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        try:
            with self._writes.begin() as connection:
                yield connection
        except sa.exc.OperationalError as error:
            raise StoreError(f"store {self} cannot be written: {_said(error)}") from None

    def _insert(self, table: sa.Table) -> Any:
        """An insert that leaves what is there as it is."""
        make = sqlite.insert if self.is_file else postgresql.insert
        return make(table).on_conflict_do_nothing()

    # Writing

    def plan(self, sweep: Sweep, cells: Sequence[str]) -> None:
        """Write down a sweep and its cells, in order; one that is there already is taken as it is."""
        with self._writing() as connection:
            row = {**asdict(sweep), "version": __version__, "created": _now()}
            connection.execute(self._insert(schema.sweeps), row)
            rows = [
                {"sweep": sweep.signature, "place": place, "cell": cell} for place, cell in enumerate(cells)
            ]
            if rows:
                connection.execute(self._insert(schema.plans), rows)

    def record(self, outcome: Outcome) -> None:
        """Write down what a cell came to; a failure gives way to a result, a result to nothing."""
        with self._writing() as connection:
            if outcome.run is not None:
                self._record_run(connection, outcome.run)
            cells = schema.cells
            connection.execute(
                sa.delete(cells).where(cells.c.signature == outcome.cell.signature, cells.c.state == "failed")
            )
            row = {
                **asdict(outcome.cell), "state": outcome.state, "reason": outcome.reason,
                "run": outcome.run and outcome.run.signature,
                "gain": outcome.gain and asdict(outcome.gain), "effect": outcome.effect and asdict(outcome.effect),
                "seconds": outcome.seconds, "finished": _now(),
            }  # fmt: skip
            connection.execute(self._insert(cells), row)

    def _record_run(self, connection: sa.Connection, run: Run) -> None:
        own = {
            "signature": run.signature, "name": run.name, "target": run.target, "task": run.task,
            "revision": run.revision, "method": run.method, "parameters": dict(run.parameters),
            "sources": list(run.sources), "seed": run.seed, "seconds": run.seconds, "version": __version__,
            "host": platform.node(), "finished": _now(),
        }  # fmt: skip
        connection.execute(self._insert(schema.runs), own)
        connection.execute(
            self._insert(schema.scores), [{"run": run.signature, **asdict(one)} for one in run.scores]
        )
        numbers = [
            {"run": run.signature, "group": group, "source": source, "value": value}
            for group, values in run.coefficients.items()
            for source, value in values.items()
        ]
        if numbers:
            connection.execute(self._insert(schema.coefficients), numbers)

    def decide(
        self, signature: str, *, target: str, mode: str, labels: str, choice: str, run: str | None,
        record: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Write down a decision with its whole record."""
        with self._writing() as connection:
            row = {
                "signature": signature, "target": target, "mode": mode, "labels": labels, "choice": choice, "run": run,
                "record": dict(record), "created": _now(),
            }  # fmt: skip
            connection.execute(self._insert(schema.decisions), row)

    # Reading

    def sweeps(self) -> list[Sweep]:
        """All sweeps, the oldest first."""
        names = [schema.sweeps.c[name] for name in Sweep.__dataclass_fields__]
        return [
            Sweep(**row) for row in self._read(sa.select(*names).order_by(schema.sweeps.c.created, names[0]))
        ]

    def states(self, cells: Sequence[str]) -> dict[str, State]:
        """Of these cells those that are done or failed."""
        found: dict[str, State] = {}
        own = schema.cells.c
        for start in range(0, len(cells), CHUNK):
            wanted = sa.select(own.signature, own.state).where(
                own.signature.in_(cells[start : start + CHUNK])
            )
            found.update((row["signature"], row["state"]) for row in self._read(wanted))
        return found

    def outcomes(self, sweep: str | None = None, **where: Any) -> list[Outcome]:
        """What cells came to: of a sweep in its order, or of all in the order of their ends.

        Args:
            sweep: its signature.
            where: values of cells' columns, or several of them: `target="sw-KE"`, `kind=["merge", "self"]`.
        """
        cells, plans = schema.cells, schema.plans
        wanted = sa.select(cells).order_by(cells.c.finished, cells.c.signature)
        if sweep is not None:
            wanted = (
                sa.select(cells)
                .join(plans, plans.c.cell == cells.c.signature)
                .where(plans.c.sweep == sweep)
                .order_by(plans.c.place)
            )
        for name, value in where.items():
            column = cells.c[name]
            wanted = wanted.where(column.in_(value) if isinstance(value, list | tuple) else column == value)
        rows = list(self._read(wanted))
        runs = self.runs({row["run"] for row in rows if row["run"]})
        return [_outcome(row, runs) for row in rows]

    def runs(self, signatures: Iterable[str]) -> dict[str, Run]:
        """Runs with their scores and coefficients."""
        wanted = sorted(set(signatures))
        rows = self._by(schema.runs, "signature", wanted)
        scores: dict[str, list[Scored]] = {}
        for row in self._by(schema.scores, "run", wanted):
            scores.setdefault(row.pop("run"), []).append(Scored(**row))
        numbers: dict[str, dict[str, dict[str, float]]] = {}
        for row in self._by(schema.coefficients, "run", wanted):
            numbers.setdefault(row["run"], {}).setdefault(row["group"], {})[row["source"]] = row["value"]
        own = Run.__dataclass_fields__.keys() - {"scores", "coefficients", "sources"}
        return {
            row["signature"]: Run(
                **{name: row[name] for name in own},
                sources=tuple(row["sources"]),
                scores=tuple(sorted(scores.get(row["signature"], ()), key=lambda one: one.split)),
                coefficients=numbers.get(row["signature"], {}),
            )
            for row in rows
        }

    def expected_seconds(self, kinds: Sequence[str]) -> float | None:
        """What cells of these kinds would take, by the mean of finished ones; None where a kind has none."""
        own = schema.cells.c
        mean = (
            sa.select(own.kind, sa.func.avg(own.seconds).label("mean"))
            .where(own.state == "done")
            .group_by(own.kind)
        )
        known = {row["kind"]: row["mean"] for row in self._read(mean)}
        if any(kind not in known for kind in kinds):
            return None
        return float(sum(known[kind] for kind in kinds))

    def decisions(self, **where: Any) -> list[dict[str, Any]]:
        """Decisions, the oldest first."""
        own = schema.decisions
        wanted = sa.select(own).order_by(own.c.created, own.c.signature)
        for name, value in where.items():
            wanted = wanted.where(own.c[name] == value)
        return list(self._read(wanted))

    def _by(self, table: sa.Table, name: str, values: Sequence[str]) -> Iterator[dict[str, Any]]:
        keys = [column.name for column in table.primary_key]
        for start in range(0, len(values), CHUNK):
            wanted = sa.select(table).where(table.c[name].in_(values[start : start + CHUNK]))
            yield from self._read(wanted.order_by(*(table.c[key] for key in keys)))

    def _read(self, wanted: sa.Select[Any]) -> Iterator[dict[str, Any]]:
        with self._engine.connect() as connection:
            yield from (dict(row) for row in connection.execute(wanted).mappings().all())


def _outcome(row: Mapping[str, Any], runs: Mapping[str, Run]) -> Outcome:
    def difference(name: str) -> Difference | None:
        return Difference(**row[name]) if row[name] else None

    cell = Cell(**{name: row[name] for name in Cell.__dataclass_fields__})
    run = runs[row["run"]] if row["run"] else None
    return Outcome(cell, run, row["reason"], difference("gain"), difference("effect"), row["seconds"])


def store_url(place: str | Path) -> URL:
    """The URL of a store.

    >>> str(store_url("results/store.sqlite"))
    'sqlite:///results/store.sqlite'
    >>> store_url("postgresql://me@host/mine").drivername
    'postgresql+psycopg'

    Raises:
        StoreError: a URL of another kind of database.
    """
    if isinstance(place, Path) or "://" not in place:
        return URL.create("sqlite", database=str(place))
    try:
        url = make_url(place)
    except sa.exc.ArgumentError as error:
        raise StoreError(f"store {place!r} is no URL: {error}") from None
    name = url.get_backend_name()
    if name not in ("sqlite", "postgresql"):
        raise StoreError(f"store {place!r}: there are SQLite (a file) and postgresql://, not {name}")
    if url.drivername == "postgresql":
        # The driver that the extra installs.
        url = url.set(drivername="postgresql+psycopg")
    return url


def _engine(url: URL) -> sa.Engine:
    try:
        if url.get_backend_name() == "postgresql":
            return sa.create_engine(url, pool_pre_ping=True)
        engine = sa.create_engine(url, connect_args={"timeout": WAIT, "isolation_level": None})
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            str(error.name), extra="postgresql", needed_for=f"a store at {url.host}"
        ) from None

    @sa.event.listens_for(engine, "connect")
    def _(raw: Any, _record: Any) -> None:
        for said in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            raw.execute(f"PRAGMA {said}")

    @sa.event.listens_for(engine, "begin")
    def _(connection: sa.Connection) -> None:
        # A writer waits for its turn at once: one that has read first cannot.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _said(error: Exception) -> str:
    """One line of a database's complaint."""
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
