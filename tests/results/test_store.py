"""The store: what is written comes back, once, whatever else writes or dies."""

import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from langmerge.errors import MissingExtraError, StoreError
from langmerge.results import schema
from langmerge.results import store as module
from langmerge.results.migrate import configuration, upgrade
from langmerge.results.records import Cell, Outcome, Run, Scored, Sweep
from langmerge.results.store import Store, store_url
from langmerge.results.study import Difference
from tests.results.postgresql import server

SWEEP = Sweep("5" * 12, "first", "demo:intent", "r1", "e5-small", {"grid": {"k": [2]}, "matrices": {}})


def outcome(number: int, **changes: Any) -> Outcome:
    scores = tuple(
        Scored(split, f"{split}{number}", 200, 0.5, 0.45, 0.55, 0.4, f"{split}.safetensors", "i" * 12, bytes([0, 255, 7] * 9)) for split in ("dev", "test")
    )  # fmt: skip
    run = Run(
        f"r{number:06d}", "ties(density=0.2)", "sw-KE", "demo:intent", "r1", ("de-DE", "fr-FR"), 3, scores, "ties",
        {"density": 0.2}, {"model": {"de-DE": 0.25, "fr-FR": 0.75}}, 1.5,
    )  # fmt: skip
    cell = Cell(f"c{number:06d}", "merge", "sw-KE", "ExcTar", "measured", 2, "ties(density=0.2)", 3)
    plain = Outcome(cell, run, None, Difference(1.0, 0.5, 1.5, 0.01), Difference(2.0, 1.0, 3.0), 2.5)
    return replace(plain, **changes)


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server on loopback, started for the session."""
    with server(tmp_path_factory.mktemp("postgresql")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store's place, of both kinds."""
    if request.param == "sqlite":
        return str(tmp_path / "new" / "store.sqlite")
    url = request.getfixturevalue("postgresql")
    name = f"t{os.getpid()}_{time.monotonic_ns()}"
    engine = sa.create_engine(store_url(url), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{url.rsplit('/', 1)[0]}/{name}"


def test_what_was_written_comes_back(place: str) -> None:
    made = [outcome(number) for number in (1, 0, 2)]
    with Store(place) as store:
        store.plan(SWEEP, [one.cell.signature for one in made])
        for one in reversed(made):
            store.record(one)
    with Store(place) as store:
        assert store.outcomes(SWEEP.signature) == made
        assert store.sweeps() == [SWEEP]
        assert store.states(["c000001", "c000009"]) == {"c000001": "done"}
        assert store.outcomes(target="sq-AL") == []
        assert len(store.outcomes(target=["sw-KE", "sq-AL"], kind="merge")) == 3


def test_writing_twice_changes_nothing_and_a_failure_gives_way(place: str) -> None:
    good = outcome(0)
    bad = Outcome(good.cell, reason="PlanError: no", seconds=0.5)
    with Store(place) as store:
        store.record(bad)
        assert store.states([good.cell.signature]) == {good.cell.signature: "failed"}
        assert store.outcomes() == [bad]
        store.record(good)
        for again in (good, bad, replace(good, gain=None, seconds=9.0)):
            store.record(again)
            assert store.outcomes() == [good]
        store.plan(SWEEP, ["c000000"])
        store.plan(SWEEP, ["c000000"])
        assert store.outcomes(SWEEP.signature) == [good]


def test_two_cells_may_come_to_one_run(place: str) -> None:
    first = outcome(0)
    other = replace(first, cell=replace(first.cell, signature="other", selector="typology"))
    with Store(place) as store:
        store.record(first)
        store.record(other)
        assert [one.run for one in store.outcomes()] == [first.run, first.run]
        with store._engine.connect() as connection:
            assert connection.scalar(sa.select(sa.func.count()).select_from(schema.runs)) == 1


def test_decisions_and_expected_seconds(place: str) -> None:
    with Store(place) as store:
        store.decide(
            "d" * 12, target="sw-KE", mode="ExcTar", labels="dev", choice="wudi", run=None, record={"a": [1]}
        )
        store.decide("d" * 12, target="sw-KE", mode="ExcTar", labels="dev", choice="no", run=None, record={})
        (found,) = store.decisions(target="sw-KE")
        assert (found["choice"], found["record"]) == ("wudi", {"a": [1]})
        assert store.decisions(target="cy-GB") == []
        assert store.expected_seconds(["merge"]) is None
        store.record(outcome(0))
        store.record(outcome(1, seconds=1.5))
        assert store.expected_seconds(["merge", "merge", "merge"]) == pytest.approx(6.0)
        assert store.expected_seconds(["merge", "self"]) is None


def write(place: str, numbers: range) -> None:
    store = Store(place)
    for number in numbers:
        store.record(outcome(number))


def test_of_four_processes_that_write_at_once_nothing_is_lost(place: str) -> None:
    """They make the store as well, all at once."""
    context = multiprocessing.get_context("spawn")
    # Every tenth row is written by two of them.
    parts = [range(start, 200, 4) for start in range(4)] + [range(0, 200, 10)]
    workers = [context.Process(target=write, args=(place, part)) for part in parts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 5
    with Store(place) as store:
        found = store.outcomes()
        assert sorted(one.cell.signature for one in found) == [f"c{number:06d}" for number in range(200)]
        assert all(one.run is not None and len(one.run.scores) == 2 for one in found)


def test_a_killed_writer_leaves_whole_results(tmp_path: Path) -> None:
    place = str(tmp_path / "store.sqlite")
    Store(place).close()
    context = multiprocessing.get_context("fork")
    for turn in range(5):
        worker = context.Process(target=write, args=(place, range(turn * 1000, turn * 1000 + 1000)))
        worker.start()
        time.sleep(0.1 + 0.05 * turn)
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
        with Store(place) as store:
            for one in store.outcomes():
                assert one.run is not None
                assert len(one.run.scores) == 2
                assert one.run.coefficients == {"model": {"de-DE": 0.25, "fr-FR": 0.75}}
    with sqlite3.connect(place) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM cells").fetchone()[0] > 10


def test_the_migrations_make_the_tables(place: str) -> None:
    assert ScriptDirectory.from_config(configuration()).get_current_head() == schema.HEAD
    with Store(place) as store, store._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert context.get_current_revision() == schema.HEAD
        assert compare_metadata(context, schema.metadata) == []


def test_a_store_is_brought_up_to_date(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a second migration, made for this test; what was there stays, and version 1 then refuses it."""
    import shutil

    from langmerge.results import migrate

    first = outcome(0)
    with Store(place) as store:
        store.record(first)
    shutil.copytree(migrate.FOLDER, tmp_path / "migrations")
    (tmp_path / "migrations" / "versions" / "0002_second.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision = '0002'\ndown_revision = '0001'\n"
        "branch_labels = None\ndepends_on = None\n"
        "def upgrade():\n    op.add_column('runs', sa.Column('note', sa.Text()))\n"
    )
    with monkeypatch.context() as newer:
        newer.setattr(migrate, "FOLDER", tmp_path / "migrations")
        newer.setattr(schema, "HEAD", "0002")
        with Store(place) as store:
            assert "note" in {column["name"] for column in sa.inspect(store._engine).get_columns("runs")}
            assert store.outcomes() == [first]
    with pytest.raises(StoreError, match="version 0002, made by a newer langmerge: update langmerge"):
        Store(place)


def test_a_store_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, and longer than a header of one would be" * 20)
    (tmp_path / "folder").mkdir()
    for odd, said in (
        (tmp_path / "text", "not a database"),
        (tmp_path / "folder", "cannot be opened"),
        ("mysql://somebody@nowhere/x", "there are SQLite"),
        ("://", "is no URL"),
        ("postgresql://nobody@127.0.0.1:1/none", "cannot be opened"),
    ):
        with pytest.raises(StoreError, match=said) as found:
            Store(odd)
        assert "\n" not in str(found.value)
    assert (tmp_path / "text").read_text().startswith("this is no database")


def test_a_database_of_something_else_stays_as_it_is(place: str) -> None:
    if "://" not in place:
        Path(place).parent.mkdir()
    engine = sa.create_engine(store_url(place))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE mine (x INTEGER)"))
    with pytest.raises(StoreError, match="a database of something else: it has tables mine; name another"):
        Store(place)
    assert sa.inspect(engine).get_table_names() == ["mine"]
    engine.dispose()


def test_a_password_is_not_shown() -> None:
    with pytest.raises(StoreError) as found:
        Store("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(found.value)


def test_without_the_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("no", name="psycopg")

    monkeypatch.setattr(module.sa, "create_engine", missing)
    with pytest.raises(MissingExtraError, match="postgresql"):
        Store("postgresql://me@host/name")


def test_an_upgrade_of_what_is_up_to_date_does_nothing(tmp_path: Path) -> None:
    place = tmp_path / "store.sqlite"
    Store(place).close()
    before = place.stat().st_mtime_ns
    engine = sa.create_engine(store_url(place))
    upgrade(engine, str(place))
    engine.dispose()
    assert place.stat().st_mtime_ns == before
