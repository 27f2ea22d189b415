"""Kill merges at random moments, and look at what they leave.

python scripts/kill_merges.py 200

Every merge is a process of its own, ended by SIGKILL: half of them at a moment drawn from the whole time that such a
merge takes, half from the time in which it writes. The output must then be absent or complete (with --overwrite: the old
one or the new one, complete), byte for byte, and after the next merge to the same place nothing else may be left, neither
beside the output nor in the folders of the inputs.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from langmerge.checkpoint import Slot, WeightWriter, open_checkpoint
from langmerge.errors import CheckpointError

SOURCES = ("de-DE", "fr-FR", "sw-KE")
METHODS = {
    "task_arithmetic": "parameters: {scale: 0.4}",
    "ties": "parameters: {density: 0.2}",
    "dare_ties": "parameters: {density: 0.5}",
    "wudi": "",
}
EVERY = 5
"""Kills in a row before a merge is left to end."""

COMMAND = (sys.executable, "-c", "from langmerge.cli import program; program()", "merge")


@dataclass
class Merge:
    """One kind of merge: its command line, and what it makes."""

    arguments: tuple[str, ...]
    reference: Path
    whole: float = 0.0
    writing: float = 0.0


@dataclass
class Tally:
    """What was seen."""

    moments: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """How many merges were alive when they were killed."""
        return self.moments.total() - self.moments["not in time"]

    def __str__(self) -> str:
        seen = ", ".join(
            f"{self.moments[key]} {key}" for key in ("starting up", "writing", "after the rename")
        )
        return (
            f"{self.kills} kills ({seen}; {self.moments['not in time']} more merges had ended before): "
            f"{len(self.faults)} faults (partial outputs, or files left after the next merge)"
        )


def write_model(folder: Path, seed: int, *, width: int, base: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A model with an encoder's names; moved a little from `base`, if there is one."""
    shapes = {
        "roberta.embeddings.word_embeddings.weight": (16 * width, width),
        "classifier.out_proj.weight": (3, width),
    }
    for layer in range(4):
        prefix = f"roberta.encoder.layer.{layer}"
        shapes |= {
            f"{prefix}.attention.self.{part}.weight": (width, width) for part in ("query", "key", "value")
        }
        shapes |= {
            f"{prefix}.output.dense.weight": (width, 4 * width),
            f"{prefix}.output.dense.bias": (width,),
        }
    numbers = np.random.default_rng(seed)
    drawn = {name: numbers.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    tensors = {name: base[name] + 0.1 * one for name, one in drawn.items()} if base else drawn
    folder.mkdir(parents=True)
    labels = dict(enumerate("abc"))
    config = {"id2label": labels, "label2id": {name: row for row, name in labels.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    with WeightWriter(folder, [Slot(name, one.shape, "F32") for name, one in tensors.items()]) as writer:
        for name, one in tensors.items():
            writer.write(name, 0, one)
    # Old enough for its hash to be kept beside it: that file must not be left half-written either.
    os.utime(folder / "model.safetensors", (1, 1))
    return tensors


def write_pool(root: Path, *, width: int) -> None:
    """A base and three sources."""
    base = write_model(root / "base", 0, width=width, base={})
    for seed, name in enumerate(SOURCES, start=1):
        write_model(root / name, seed, width=width, base=base)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def output_fault(out: Path, allowed: list[Path]) -> str | None:
    """What is wrong with an output that must be one of these folders."""
    try:
        open_checkpoint(out)
    except CheckpointError as error:
        return f"it does not open: {error}"
    found = contents(out)
    differing = [
        {name for name in found | whole if found.get(name) != whole.get(name)}
        for whole in map(contents, allowed)
    ]
    if not all(differing):
        return None
    return f"it is none of the whole outputs: {' or '.join(str(sorted(names)) for names in differing)} differ"


def left(work: Path, pool: Path) -> list[str]:
    """Whatever is there besides outputs and inputs."""
    beside = [str(path) for path in work.iterdir() if path.name != "out"]
    known = {"config.json", "model.safetensors", ".langmerge.fingerprint"}
    return beside + [str(path) for path in pool.rglob("*") if path.is_file() and path.name not in known]


def forget_hashes(pool: Path) -> None:
    """As if these inputs had never been hashed."""
    for kept in pool.glob("*/.langmerge.fingerprint"):
        kept.unlink()


def prepared(root: Path, *, methods: list[str], width: int) -> tuple[list[Merge], Path]:
    """The merges, each made once to have its bytes and its time; and an old output."""
    pool, merges = root / "pool", []
    write_pool(pool, width=width)
    sources = "\n".join(f"  {name}: {pool / name}" for name in SOURCES)
    for method in methods:
        recipe = root / f"{method}.yaml"
        recipe.write_text(
            f"base: {pool / 'base'}\nsources:\n{sources}\nmethod: {method}\n{METHODS[method]}\n"
        )
        for options in ((), ("--shard", "0.002")):
            work = root / f"{method}{len(options)}"
            work.mkdir()
            merges.append(Merge((str(recipe), str(work / "out"), *options), work / "out"))
            timed(merges[-1], work)
    old = root / "old"
    write_model(old, 9, width=width, base={})
    return merges, old


def timed(merge: Merge, work: Path) -> None:
    """Let it end, and note how long it takes and how long it writes."""
    begun, writing = time.perf_counter(), None
    process = subprocess.Popen([*COMMAND, *merge.arguments], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if writing is None and any(work.iterdir()):
            writing = time.perf_counter()
        time.sleep(0.001)
    if process.returncode:
        raise SystemExit(f"a merge that nobody killed failed: {merge.arguments}")
    merge.whole = time.perf_counter() - begun
    merge.writing = time.perf_counter() - (writing or begun)


def names_in(folder: Path) -> set[str]:
    """What is there now."""
    return {entry.name for entry in os.scandir(folder)}


def killed(merge: Merge, arguments: list[str], work: Path, numbers: random.Random) -> bool:
    """Start a merge and kill it at a moment drawn by `numbers`; whether it was still alive."""
    before = names_in(work)
    once_writing = numbers.random() < 0.5
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while once_writing and process.poll() is None and names_in(work) <= before:
        time.sleep(0.0002)
    known = merge.writing if once_writing else merge.whole
    begun, delay = time.perf_counter(), numbers.uniform(0, 1.02 * known)
    while process.poll() is None and time.perf_counter() - begun < delay:
        time.sleep(0.0002)
    took = time.perf_counter() - begun
    process.kill()
    _, said = process.communicate()
    if process.returncode > 0:
        raise SystemExit(f"a merge failed by itself: {said.decode()}")
    if process.returncode == 0 and took < delay:
        # The machine is faster now than it was.
        setattr(merge, "writing" if once_writing else "whole", took)
    return process.returncode < 0


def attempt(
    merge: Merge, work: Path, old: Path, numbers: random.Random, *, overwrite: bool
) -> tuple[str, str | None]:
    """One kill: the moment, and what is wrong afterwards."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    if overwrite:
        shutil.copytree(old, out)
    before = names_in(work)
    recipe, _, *options = merge.arguments
    alive = killed(
        merge, [recipe, str(out), *options, *(["--overwrite"] if overwrite else [])], work, numbers
    )
    hidden = {name for name in names_in(work) - before if name != "out"}
    is_new = out.exists() and output_fault(out, [merge.reference]) is None
    moment = (
        "not in time"
        if not alive
        else "writing"
        if hidden
        else "after the rename"
        if is_new
        else "starting up"
    )
    if is_new:
        return moment, None
    if not alive:
        return moment, "it ended and its output is not whole"
    if not out.exists():
        return moment, "the old output is gone" if overwrite else None
    return moment, output_fault(out, [old, merge.reference] if overwrite else [merge.reference])


def run(kills: int, root: Path, *, seed: int, methods: list[str], width: int) -> Tally:
    """Kill, look, and let one merge in `EVERY` end."""
    numbers, tally = random.Random(seed), Tally()
    merges, old = prepared(root, methods=methods, width=width)
    while tally.kills < kills:
        merge, overwrite = numbers.choice(merges), numbers.random() < 0.5
        work = Path(tempfile.mkdtemp(dir=root))
        for _ in range(min(EVERY, kills - tally.kills)):
            forget_hashes(root / "pool")
            moment, fault = attempt(merge, work, old, numbers, overwrite=overwrite)
            tally.moments[moment] += 1
            tally.faults += [f"{merge.arguments}: {fault}"] if fault else []
        shutil.rmtree(work / "out", ignore_errors=True)
        forget_hashes(root / "pool")
        recipe, _, *options = merge.arguments
        subprocess.run([*COMMAND, recipe, str(work / "out"), *options], check=True, stdout=subprocess.DEVNULL)
        if fault := output_fault(work / "out", [merge.reference]):
            tally.faults.append(f"after kills, {merge.arguments}: {fault}")
        tally.faults += [f"left after the next merge: {path}" for path in left(work, root / "pool")]
        shutil.rmtree(work)
    return tally


def main() -> int:
    """Say what was seen; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--width", type=int, default=256, help="of the models; 256 makes 10 MB each")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        tally = run(chosen.kills, Path(root), seed=chosen.seed, methods=chosen.methods, width=chosen.width)
    print(tally)
    for fault in tally.faults:
        print(fault)
    return bool(tally.faults)


if __name__ == "__main__":
    sys.exit(main())
