"""The store: four processes at once, the scan of a resumed sweep, and what one result costs.

python benchmarks/store.py [--rows 10000] [--store postgresql://…]

Floors are measured in the same run: a bare SQLite file with one table, one transaction a row.
"""

import argparse
import multiprocessing
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from langmerge.results.records import Cell, Outcome, Run, Scored
from langmerge.results.store import Store
from langmerge.results.study import Difference

PROCESSES = 4
TEST = 2974


def outcome(number: int) -> Outcome:
    """A merge of five sources, as a sweep records it."""
    sources = ("de-DE", "en-US", "fr-FR", "id-ID", "tr-TR")
    scores = tuple(
        Scored(
            split,
            f"{split}{number}",
            rows,
            0.5,
            0.48,
            0.52,
            0.4,
            f"logits/{number}",
            "i" * 12,
            bytes(rows // 8 + 1),
        )
        for split, rows in (("dev", 2033), ("test", TEST))
    )
    run = Run(
        f"r{number:08d}", "ties(density=0.2)", "sw-KE", "massive:intent", "1.1", sources, 0, scores, "ties",
        {"density": 0.2}, {"model": dict.fromkeys(sources, 0.2)}, 12.0,
    )  # fmt: skip
    cell = Cell(f"c{number:08d}", "merge", "sw-KE", "ExcTar", "measured", 5, "ties(density=0.2)", 0)
    return Outcome(cell, run, None, Difference(1.0, 0.5, 1.5, 0.01), Difference(2.0, 1.0, 3.0), 12.0)


def write(place: str, numbers: range) -> None:
    """One process's share."""
    with Store(place) as store:
        for number in numbers:
            store.record(outcome(number))


def floor(folder: Path, rows: int) -> float:
    """Seconds a row for a bare table, one transaction each."""
    connection = sqlite3.connect(folder / "floor.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE cells (signature TEXT PRIMARY KEY, value REAL)")
    started = time.perf_counter()
    for number in range(rows):
        connection.execute("INSERT INTO cells VALUES (?, ?)", (f"c{number:08d}", 0.5))
    return (time.perf_counter() - started) / rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--store", help="an empty database; a new SQLite file by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = given.store or str(Path(folder) / "store.sqlite")
        workers = [
            multiprocessing.get_context("spawn").Process(
                target=write, args=(place, range(n, given.rows, PROCESSES))
            )
            for n in range(PROCESSES)
        ]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - started
        with Store(place) as store:
            cells = [f"c{number:08d}" for number in range(given.rows)]
            scans = []
            for _ in range(5):
                started = time.perf_counter()
                states = store.states(cells)
                scans.append(time.perf_counter() - started)
            assert set(states.values()) == {"done"}
            found = store.outcomes()
            whole = sum(one.run is not None and len(one.run.scores) == 2 for one in found)
            print(
                f"{PROCESSES} processes, {given.rows} rows in {seconds:.1f} s: {len(found)} there, {whole} whole, "
                f"{given.rows - whole} lost"
            )
            print(f"scan of {given.rows} finished cells: {statistics.median(scans):.3f} s (at most 1)")
            costs, floors = [], []
            for turn in range(5):
                started = time.perf_counter()
                for number in range(200):
                    store.record(outcome(given.rows + 200 * turn + number))
                costs.append((time.perf_counter() - started) / 200)
                (Path(folder) / "floor.sqlite").unlink(missing_ok=True)
                floors.append(floor(Path(folder), 200))
            print(
                f"one result: {1e3 * statistics.median(costs):.1f} ms ({1e3 * min(costs):.1f}–{1e3 * max(costs):.1f}; at most 20), "
                f"{statistics.median(costs) / statistics.median(floors):.0f} × a bare row"
            )


if __name__ == "__main__":
    main()
