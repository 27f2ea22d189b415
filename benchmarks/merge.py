"""How fast, and in how much memory, langmerge merges: whole processes against mergekit 0.1.5 and against the floor.

    python benchmarks/merge.py --work DIR --install-mergekit
    python benchmarks/merge.py --work DIR [--rounds 3] [--only xlmr qwen/ties] [--json FILE]
    python benchmarks/merge.py --work DIR --scale 1 2 4

The first line makes an environment for mergekit below DIR. The second makes the inputs once (XLM-R-base-shaped
classifiers in float32: a base and five experts of 1.11 GB; Qwen2-0.5B-shaped decoders in bfloat16: a base and three of
0.99 GB) and merges them by five methods. Every round times langmerge, mergekit, langmerge's start-up (the same command on
models with as many tensors and next to nothing in them) and the floor (a bare loop that reads every input of the
recipe once, mapped, and writes one output, with the same number of threads), in an order that turns round with every
round; before each, the inputs are read into the page cache and the disk has finished writing. langmerge merges as for
the first time: hashes of inputs that an earlier merge kept are removed, so it takes them as well. A round before the
timed ones watches the memory and compares the two outputs.

The third makes models of 1, 2 and 4 GB (more layers), one size at a time, merges them by langmerge alone, shows whether
memory grows with them, and removes them: 7, 14 and 28 GB of disk, in turn, for base, five experts and output.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _agreement import compared
from _measure import Memory, Run, floor_seconds, run_process, warm
from _models import FAMILIES, Family, make_models, scaled, tiny
from _recipes import METHODS, inputs_of, mergekit_recipe, native_recipe, write_recipe
from _report import Case, aligned, growth, measured_rows, verdicts

import langmerge

MERGEKIT = "mergekit==0.1.5"
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
KEPT_HASH = ".langmerge.fingerprint"


@dataclass(frozen=True)
class Bench:
    """How to measure.

    Attributes:
        work: folder for inputs, recipes and outputs.
        threads: of langmerge, of mergekit's arithmetic and of the floor.
        rounds: how often each is timed.
        mergekit: its `mergekit-yaml`, or None.
        keep_hashes: leave langmerge the hashes of the inputs that it kept.
    """

    work: Path
    threads: int
    rounds: int
    mergekit: Path | None
    keep_hashes: bool = False

    @property
    def tools(self) -> list[str]:
        """Who merges."""
        return ["langmerge", "mergekit"] if self.mergekit else ["langmerge"]

    def command(self, tool: str, family: Family, method: str) -> list[str]:
        """The command that merges into `out(tool)`; writes its recipe."""
        recipe = native_recipe if tool == "langmerge" else mergekit_recipe
        file = self.work / "recipes" / f"{family.name}-{method}-{tool}.yaml"
        write_recipe(recipe(family, method, self.work / family.name), file)
        if tool == "langmerge":
            own = Path(sys.executable).with_name("langmerge")
            return [str(own), "merge", str(file), str(self.out(tool)), "--threads", str(self.threads)]
        return [str(self.mergekit), str(file), str(self.out(tool))]

    def out(self, tool: str) -> Path:
        """Where a tool writes."""
        return self.work / f"out-{tool}"

    def run(self, tool: str, family: Family, method: str, *, watched: bool = False) -> Run:
        """Merge once, inputs in the page cache and nothing left to be written."""
        models = self.work / family.name
        inputs = [models / name for name in inputs_of(family, method)]
        if not self.keep_hashes:
            for folder in inputs:
                (folder / KEPT_HASH).unlink(missing_ok=True)
        shutil.rmtree(self.out(tool), ignore_errors=True)
        command = self.command(tool, family, method)
        _settle(folder / "model.safetensors" for folder in inputs)
        # mergekit takes the number of its threads from torch's; neither tool may look for anything on the hub.
        env = {"OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        return run_process(command, log=self.work / f"{tool}.log", env=env, watched=watched)

    def floor(self, family: Family, method: str) -> Run:
        """Read and write what a merge has to, once."""
        files = [self.work / family.name / name / "model.safetensors" for name in inputs_of(family, method)]
        _settle(files)
        return Run(floor_seconds(files, self.work / "floor.bin", threads=self.threads), 0.0)


def _settle(files: Iterable[Path]) -> None:
    """Inputs into the page cache; what others have left to be written, onto the disk."""
    os.sync()
    warm(files)


def measured_case(bench: Bench, family: Family, method: str, *, say: Callable[[str], None]) -> Case:
    """One merge: memory and agreement first, then the timed rounds."""
    case = Case(family.name, family.kind, method, len(inputs_of(family, method)), family.nbytes)
    watch(bench, family, case)
    small = tiny(family)
    steps: dict[str, Callable[[], Run]] = {
        "start-up": lambda: bench.run("langmerge", small, method),
        "langmerge": lambda: bench.run("langmerge", family, method),
        "mergekit": lambda: bench.run("mergekit", family, method),
        "floor": lambda: bench.floor(family, method),
    }
    chosen = [name for name in steps if name != "mergekit" or bench.mergekit]
    for turn in range(bench.rounds):
        say(f"{case.name}: round {turn + 1} of {bench.rounds}")
        for name in chosen if turn % 2 == 0 else reversed(chosen):
            run = steps[name]()
            case.seconds.setdefault(name, []).append(run.seconds)
            case.cpu_seconds.setdefault(name, []).append(run.cpu_seconds)
            _remove_outputs(bench)
    return case


def watch(bench: Bench, family: Family, case: Case) -> None:
    """Enter the peaks of memory, and how the outputs compare."""
    for tool in bench.tools:
        case.memory[tool] = bench.run(tool, family, case.method, watched=True).memory or Memory()
    if bench.mergekit:
        case.agreement = compared(
            bench.out("langmerge"), bench.out("mergekit"), bench.work / family.name / "base"
        )
    _remove_outputs(bench)


def measured_size(bench: Bench, family: Family, methods: list[str], *, keep: bool) -> list[Case]:
    """Memory of langmerge alone, on models of one size, which are made for it and removed unless `keep`."""
    try:
        make_models(family, bench.work)
        cases = []
        for method in methods:
            cases.append(
                Case(family.name, family.kind, method, len(inputs_of(family, method)), family.nbytes)
            )
            watch(bench, family, cases[-1])
        return cases
    finally:
        if not keep:
            shutil.rmtree(bench.work / family.name, ignore_errors=True)


def _remove_outputs(bench: Bench) -> None:
    for tool in bench.tools:
        shutil.rmtree(bench.out(tool), ignore_errors=True)


def install_mergekit(work: Path) -> Path:
    """An environment with mergekit below `work`; returns its `mergekit-yaml`.

    torch comes first, pinned: mergekit alone would take the newest, with gigabytes for GPUs.
    """
    folder = work / "mergekit"
    venv.create(folder, with_pip=True)
    lines = CONSTRAINTS.read_text().splitlines()
    torch = next(line for line in lines if line.startswith("torch=="))
    for package in (torch, MERGEKIT):
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", package], check=True)
    return folder / "bin" / "mergekit-yaml"


def find_mergekit(given: Path | None, work: Path) -> Path:
    """`mergekit-yaml` from itself, from a python beside it, or from the environment below `work`.

    Raises:
        FileNotFoundError: it is not there.
    """
    # Not resolved: an environment's python is a link out of it.
    place = (given or work / "mergekit" / "bin" / "mergekit-yaml").absolute()
    found = place if place.name.startswith("mergekit") else place.with_name("mergekit-yaml")
    if not found.is_file():
        raise FileNotFoundError(
            f"{found} does not exist: give --install-mergekit once, --mergekit PYTHON, or --no-mergekit"
        )
    return found


def machine(bench: Bench) -> dict[str, Any]:
    """What the numbers were measured on, and with."""
    from langmerge.kernels import compiled_kernels

    cpu = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    found = {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "langmerge": langmerge.__version__,
        "kernels": "compiled" if compiled_kernels() is not None else "torch",
        "threads": bench.threads,
        "rounds": bench.rounds,
        "kept_hashes": bench.keep_hashes,
    }
    if bench.mergekit:
        code = "import importlib.metadata as m; print(*(n + '==' + m.version(n) for n in ('mergekit', 'torch', 'transformers')))"
        python = bench.mergekit.with_name("python")
        found["mergekit"] = subprocess.run(
            [python, "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()
    return found


def chosen_cases(only: list[str], families: list[Family]) -> list[tuple[Family, str]]:
    """Family and method of every merge that is asked for, by family, by method or by `family/method`.

    Raises:
        ValueError: a word that names none.
    """
    pairs = [(family, method) for family in families for method in METHODS]
    names = {(family, method): {family.kind, method, f"{family.kind}/{method}"} for family, method in pairs}
    if unknown := sorted(set(only) - set().union(*names.values())):
        raise ValueError(
            f"--only {unknown[0]}: there are {', '.join(FAMILIES)}, {', '.join(METHODS)} and FAMILY/METHOD"
        )
    return [pair for pair in pairs if not only or names[pair] & set(only)]


def options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="for inputs (11 GB) and outputs"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="xlmr, ties, qwen/linear, …")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="all numbers; written anew after every merge"
    )
    parser.add_argument(
        "--scale", nargs="+", type=float, default=[], metavar="GB", help="memory by size of a model"
    )
    parser.add_argument("--keep", action="store_true", help="with --scale: keep the models")
    parser.add_argument(
        "--keep-hashes", action="store_true", help="let langmerge know the inputs from earlier merges"
    )
    peer = parser.add_mutually_exclusive_group()
    peer.add_argument(
        "--mergekit", type=Path, metavar="PYTHON", help="of its environment, or its mergekit-yaml"
    )
    peer.add_argument(
        "--install-mergekit", action="store_true", help="into an environment below DIR, and end"
    )
    peer.add_argument("--no-mergekit", action="store_true")
    # Shapes with next to nothing in them, for the test of this script.
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    found = parser.parse_args(arguments)
    if min(found.rounds, found.threads, *found.scale, 1) <= 0:
        parser.error("--rounds, --threads and --scale must be above zero")
    return found


def measure_methods(
    bench: Bench, pairs: list[tuple[Family, str]], save: Callable[[list[Case]], None]
) -> None:
    """Measure every merge, print each one's verdicts as it ends, and all numbers at last."""
    cases: list[Case] = []
    for family in dict.fromkeys(family for family, _ in pairs):
        _say(f"{family.name}: making the models, unless they are there")
        make_models(family, bench.work)
        make_models(tiny(family), bench.work)
        for _, method in (pair for pair in pairs if pair[0] == family):
            cases.append(measured_case(bench, family, method, say=_say))
            save(cases)
            print(aligned([verdict.row for verdict in verdicts(cases[-1])]), flush=True)
    print("\n" + aligned(measured_rows(cases)))
    print("\n" + aligned([verdict.row for case in cases for verdict in verdicts(case)]))


def measure_sizes(
    bench: Bench,
    family: Family,
    methods: list[str],
    sizes: list[float],
    save: Callable[[list[Case]], None],
    *,
    keep: bool,
) -> None:
    """Measure the memory of every method at every size, smallest first, and print whether it grows."""
    cases: list[Case] = []
    for size in sorted(sizes):
        _say(f"{size:g} GB for one model: making the models")
        cases += measured_size(bench, scaled(family, int(size * 1e9)), methods, keep=keep)
        save(cases)
    for method in methods:
        print(aligned([verdict.row for verdict in growth([case for case in cases if case.method == method])]))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    given = options(arguments)
    given.work.mkdir(parents=True, exist_ok=True)
    work = given.work.resolve()
    if given.install_mergekit:
        _say(f"installed {install_mergekit(work)}")
        return
    families = [tiny(family) if given.tiny else family for family in FAMILIES.values()]
    try:
        pairs = chosen_cases(given.only, families)
        peer = None if given.no_mergekit or given.scale else find_mergekit(given.mergekit, work)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from None
    bench = Bench(work, given.threads, given.rounds, peer, given.keep_hashes)
    facts = machine(bench)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)

    def save(cases: list[Case]) -> None:
        if given.json:
            given.json.write_text(
                json.dumps({"machine": facts, "cases": [asdict(case) for case in cases]}, indent=1) + "\n"
            )

    save([])
    if given.scale:
        methods = [method for family, method in pairs if family.kind == "xlmr"]
        measure_sizes(bench, families[0], methods, given.scale, save, keep=given.keep)
    else:
        measure_methods(bench, pairs, save)


if __name__ == "__main__":
    main()
