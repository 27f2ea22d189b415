"""Kill sweeps at random moments, and look at what they leave.

python scripts/kill_sweeps.py 1000

Every sweep is a process of its own, ended by SIGKILL at a moment drawn from the time that a whole one takes: while it
trains, measures, merges or writes to its store. The next call must go on from there. After each kill the store must be
sound and hold whole results alone; when a sweep has ended, what it found must be what one that was never killed finds, no
row lost or doubled.
"""

import argparse
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.experiments.conftest import tiny_grid

from langmerge.experiments import Grid, run_sweep
from langmerge.results.records import Outcome
from langmerge.results.store import STORE, Store


def timeless(outcomes: list[Outcome]) -> list[Outcome]:
    """Without what differs from one time and place to another."""
    found = []
    for one in outcomes:
        run = one.run and replace(
            one.run, seconds=0.0, scores=tuple(replace(score, logits=None) for score in one.run.scores)
        )
        found.append(replace(one, run=run, seconds=0.0))
    return found


def forked(work: Callable[[], object]) -> int:
    """Do it in a process of its own; gives its number."""
    child = os.fork()
    if child == 0:
        # What a sweep says belongs to nobody here.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def faults(place: Path) -> list[str]:
    """What is wrong with a store after a kill."""
    if not place.exists():
        return []
    with sqlite3.connect(place) as connection:
        (said,) = connection.execute("PRAGMA integrity_check").fetchone()
        found = [] if said == "ok" else [f"integrity: {said}"]
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'cells'").fetchone():
            return found
    with Store(place) as store:
        for one in store.outcomes():
            if one.run is None:
                found.append(f"failed: {one.cell.name}: {one.reason}")
            elif {score.split for score in one.run.scores} != {"dev", "test"}:
                found.append(f"half a run: {one.cell.name}")
    return found


def killed(grid: Grid, out: Path, whole: float, kills: int, expected: list[Outcome], seed: int) -> list[str]:
    """Kill until there were so many; whatever was wrong, in words."""
    draw = random.Random(seed)
    wrong: list[str] = []
    ended: Counter[str] = Counter()
    while ended["killed"] < kills:
        child = forked(lambda: run_sweep(grid, out))
        # Short ones among them: the store is written to at the beginning and the end of a call.
        time.sleep(draw.random() ** 2 * whole)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        ended["killed" if os.WIFSIGNALED(status) else "ended before"] += 1
        wrong += faults(out / STORE)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                wrong.append(f"a sweep ended with {os.WEXITSTATUS(status)}")
            with Store(out / STORE) as store:
                (sweep,) = store.sweeps()
                if timeless(store.outcomes(sweep.signature)) != expected:
                    wrong.append("other rows than those of a sweep that was never killed")
                if len(store.outcomes()) != len(expected):
                    wrong.append(f"{len(store.outcomes())} rows, not {len(expected)}")
            _forget(out, draw)
        if sum(ended.values()) % 50 == 0:
            print(f"{dict(ended)}, {len(wrong)} faults", flush=True)
    print(f"{dict(ended)}, {len(wrong)} faults")
    return wrong


def _forget(out: Path, draw: random.Random) -> None:
    """Begin anew: with the experts mostly, from nothing sometimes."""
    if draw.random() < 0.1:
        shutil.rmtree(out)
        return
    for path in [*out.glob(f"{STORE}*"), *out.glob("pool*/logits/*/*/merges/*")]:
        path.unlink()


def main() -> None:
    """Kill so many."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="langmerge-") as folder:
        place = Path(folder)
        grid = tiny_grid(
            place, selectors=["measured", "strength"], k=[2], training={"epochs": 1, "batch_size": 8},
            methods=[{"method": "linear"}, {"method": "ties", "vary": {"density": [0.2, 0.5]}}],
        )  # fmt: skip

        started = time.monotonic()
        # In a process of its own: nothing that it has computed is known to those that are killed.
        os.waitpid(forked(lambda: run_sweep(grid, place / "whole")), 0)
        whole = time.monotonic() - started
        with Store(place / "whole" / STORE) as store:
            (sweep,) = store.sweeps()
            expected = timeless(store.outcomes(sweep.signature))
        print(f"a sweep of {len(expected)} cells takes {whole:.1f} s")
        wrong = killed(grid, place / "killed", whole, given.kills, expected, given.seed)
    for one in wrong[:20]:
        print(one)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
