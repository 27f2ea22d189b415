"""What learning coefficients costs: a step against a plain forward and backward pass, and against autograd through the merge.

    python benchmarks/adamerging.py --work DIR --tokenizer BASE [--rounds 3] [--steps 6] [--sources 5]
    python benchmarks/adamerging.py --work DIR --tokenizer BASE --job

The inputs are those of benchmarks/merge.py: an XLM-R-base-shaped classifier (278 M weights, 60 labels) and experts near it,
drawn from fixed seeds, made below DIR if they are not there. Text is MASSIVE's (sw-KE, train), cut into pieces by the
tokenizer of BASE, a model folder (`langmerge base e5-small BASE`). Each round runs, in an order that turns round with every
round and each in a process of its own,

    plain       loss and gradients of one model in all its weights but the word embeddings, freed after each step, as
                transformers runs it by default
    plain-math  the same with attention computed as langmerge computes it where gradients are taken
    plain-all   as plain, with the word embeddings, 69 % of the weights, as training without freezing has it
    langmerge   a step of AdaMerging over all sources and every tensor, embeddings and head included, a coefficient per
                source and block: loss, gradients, dot products, Adam, merge
    autograd    the same step, the straightforward way: base and task vectors held, θ_0 + Σ λ τ within the graph

with the same batches of 64, the same precision and the same number of threads. Memory is anonymous memory (files that are
mapped can be dropped at any time) beyond one loaded model. `--job` runs the published study's job: 235 steps, K = 3.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from _measure import PERIOD, Memory, memory_of
from _models import FAMILIES, make_models

ROWS, BATCH, JOB_STEPS, JOB_SOURCES = 3_008, 64, 235, 3
KINDS = ("plain", "plain-math", "plain-all", "langmerge", "autograd")


@contextmanager
def watched(found: dict[str, Any]) -> Iterator[None]:
    """Note the peaks of this process's memory: a thread that only looks."""
    import os

    ended, peak = threading.Event(), [Memory()]

    def look() -> None:
        while not ended.wait(PERIOD):
            peak[0] = peak[0].highest(memory_of(os.getpid()))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        found["peak"] = asdict(peak[0].highest(memory_of(os.getpid())))


def batches_of(encoded: list[list[int]]) -> list[list[list[int]]]:
    """The same batches for everyone: rows of similar length, in a fixed order."""
    import torch

    from langmerge.models import shuffled_batches

    order = shuffled_batches(
        [len(row) for row in encoded], batch_size=BATCH, generator=torch.Generator().manual_seed(0)
    )
    return [[encoded[row] for row in rows] for rows in order]


def loss_of(
    model: Any,
    batch: list[list[int]],
    weights: dict[str, Any] | None,
    bf16: bool | None,
    *,
    ours: bool = False,
) -> Any:
    from torch.func import functional_call

    from langmerge.learned.objectives import entropy
    from langmerge.models import autocast, autocast_for_gradients, best_device, padded

    ids, mask = padded(batch, pad_id=1)
    with (autocast_for_gradients if ours else autocast)(best_device(), bf16):
        given = {"input_ids": ids, "attention_mask": mask}
        output = model(**given) if weights is None else functional_call(model, weights, (), given)
    return entropy(output.logits.float())


def plain_steps(folder: Path, kind: str) -> Callable[[list[list[int]], bool | None], None]:
    from langmerge.models import load_classifier

    model = load_classifier(folder / "base", device="cpu")
    model.get_input_embeddings().weight.requires_grad_(kind == "plain-all")

    def step(batch: list[list[int]], bf16: bool | None) -> None:
        loss_of(model, batch, None, bf16, ours=kind == "plain-math").backward()
        model.zero_grad(set_to_none=True)

    return step


class Autograd:
    """θ_0 + Σ λ τ within the graph, as reference implementations have it; one λ per source and block."""

    def __init__(self, folder: Path, sources: int, lr: float) -> None:
        import torch
        from safetensors.torch import load_file

        from langmerge.coefficients import group_of
        from langmerge.models import load_classifier

        self.model = load_classifier(folder / "base", device="cpu")
        self.base = {name: one.detach() for name, one in self.model.named_parameters()}
        self.taus = []
        for at in range(1, sources + 1):
            tau = load_file(folder / f"e{at}" / "model.safetensors")
            self.taus.append({name: tau[name].sub_(one) for name, one in self.base.items()})
        self.groups = list(dict.fromkeys(group_of(name) for name in self.base))
        self.of = {name: self.groups.index(group_of(name)) for name in self.base}
        self.free = torch.full(
            (len(self.groups), sources), 1 / sources, dtype=torch.float64, requires_grad=True
        )
        self.adam = torch.optim.Adam([self.free], lr=lr)

    def gradient(self, batch: list[list[int]], bf16: bool | None) -> np.ndarray:
        numbers = self.free.float()
        merged = {
            name: one + sum(numbers[self.of[name], k] * tau[name] for k, tau in enumerate(self.taus))
            for name, one in self.base.items()
        }
        loss_of(self.model, batch, merged, bf16).backward()
        return self.free.grad.numpy().copy()

    def step(self, batch: list[list[int]], bf16: bool | None) -> None:
        self.gradient(batch, bf16)
        self.adam.step()
        self.free.grad = None


class Ours:
    """langmerge's step, batches given."""

    def __init__(self, folder: Path, sources: int, lr: float, encoded: list[list[int]]) -> None:
        import torch

        from langmerge.adapting import Resident
        from langmerge.coefficients import Coefficients
        from langmerge.engine import make_plan
        from langmerge.learned.adamerging import Run, TextStream
        from langmerge.learned.groups import grouping
        from langmerge.learned.objectives import Composed
        from langmerge.learned.settings import Settings
        from langmerge.models import used_rows
        from langmerge.recipe import Recipe

        names = [f"e{at}" for at in range(1, sources + 1)]
        start = Coefficients.uniform(names)
        recipe = Recipe(
            base=folder / "base",
            sources={n: folder / n for n in names},
            method="task_arithmetic",
            coefficients=start,
        )
        resident = Resident(make_plan(recipe), [encoded], device=torch.device("cpu"))
        groups = grouping(resident.deltas.tensors, start, kind="block", sources=resident.deltas.sources)
        self.rows = used_rows(encoded, pad_id=1)
        settings = Settings(lr=lr, bounds="none", anchor=0.0, held_out=0.0, batch_size=BATCH, freeze=())
        stream = TextStream(resident.model, resident.encoded[0], Composed({"entropy": 1.0}))
        self.run = Run(resident.deltas, groups, [stream], settings, "", None)
        self.groups, self.settings = list(groups.groups), settings
        self.prepared = self.run.prepared()

    def gradient(self, bf16: bool | None) -> np.ndarray:
        self.run.settings = self.settings.model_copy(update={"bf16": bf16})
        self.run.dots[:] = 0
        self.run.fill()
        self.run.backward(0)
        return self.run.dots.copy()


def worker(arguments: argparse.Namespace) -> dict[str, Any]:
    """One kind in this process: seconds of each step, memory, and the first batch's gradient in float32."""
    import os

    import torch

    torch.set_num_threads(arguments.threads)
    folder = arguments.work / "xlmr"
    encoded = json.loads((arguments.work / "utterances.json").read_text())
    batches = batches_of(encoded)
    found: dict[str, Any] = {"kind": arguments.worker}
    from langmerge.models import load_classifier

    load_classifier(folder / "base", device="cpu")  # what loading leaves behind is not the step's
    model = load_classifier(folder / "base", device="cpu")
    found["one_model"] = asdict(memory_of(os.getpid()))
    del model
    # Looking at the memory of a process that has mapped gigabytes stops it each time: never in a timed run.
    with watched(found) if arguments.watch else nullcontext():
        step, ours = _stepper(arguments, folder, encoded, found)
        if arguments.gradient:
            return found
        seconds = []
        for at in range(arguments.steps + 1):
            started = time.perf_counter()
            if ours is not None:
                ours.run._step()
            else:
                step(batches[at % len(batches)], None)
            seconds.append(time.perf_counter() - started)
    # The first step finds allocations and files cold.
    return {**found, "seconds": seconds[1:]}


def _stepper(arguments: argparse.Namespace, folder: Path, encoded: Any, found: dict[str, Any]) -> Any:
    if arguments.worker.startswith("plain"):
        return plain_steps(folder, arguments.worker), None
    if arguments.worker == "autograd":
        own = Autograd(folder, arguments.sources, 1e-3)
        if arguments.gradient:
            found["groups"], found["gradient"] = own.groups, own.gradient(_first(encoded), False).tolist()
        return own.step, None
    ours = Ours(folder, arguments.sources, 1e-3, encoded)
    ours.prepared.__enter__()
    if arguments.gradient:
        found["groups"], found["gradient"] = ours.groups, ours.gradient(False).tolist()
    ours.run.fill()
    return None, ours


def _first(encoded: list[list[int]]) -> list[list[int]]:
    """The rows of langmerge's first step: those with seed 0, epoch 0."""
    return batches_of(encoded)[0]


def run_worker(arguments: argparse.Namespace, kind: str, *flags: str) -> dict[str, Any]:
    command = [
        sys.executable, __file__, "--work", str(arguments.work), "--worker", kind, "--steps", str(arguments.steps),
        "--sources", str(arguments.sources), "--threads", str(arguments.threads), *flags,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{kind} failed: {done.stderr.strip().splitlines()[-1:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def job(arguments: argparse.Namespace) -> None:
    """The published study's job, from loading to the last step."""
    import torch

    torch.set_num_threads(arguments.threads)
    encoded = json.loads((arguments.work / "utterances.json").read_text())
    started = time.perf_counter()
    ours = Ours(arguments.work / "xlmr", JOB_SOURCES, 1e-3, encoded)
    with ours.run.prepared():
        ours.run.fill()
        ready = time.perf_counter() - started
        for at in range(JOB_STEPS):
            ours.run._step()
            if at % 47 == 46:
                say(f"{at + 1} steps, {time.perf_counter() - started:.0f} s")
    total = time.perf_counter() - started
    say(
        f"{JOB_STEPS} steps of {BATCH}, K = {JOB_SOURCES}: {total:.0f} s ({ready:.1f} s of it to begin); at most 240"
    )


def write_utterances(work: Path, tokenizer: Path) -> None:
    """MASSIVE's Swahili training text as token ids."""
    from langmerge.models import encode, load_tokenizer
    from langmerge.tasks import load_task, task_text

    texts = task_text(load_task("massive:intent"), "sw-KE", limit=ROWS).texts
    (work / "utterances.json").write_text(json.dumps(encode(load_tokenizer(tokenizer), texts)))


def report(
    arguments: argparse.Namespace,
    runs: dict[str, list[dict[str, Any]]],
    watched_runs: dict[str, dict[str, Any]],
) -> None:
    size = FAMILIES["xlmr"].nbytes
    mean = {kind: statistics.mean(s for one in found for s in one["seconds"]) for kind, found in runs.items()}
    extra = {
        kind: one["peak"]["anonymous"] - one["one_model"]["anonymous"] for kind, one in watched_runs.items()
    }
    pages = {
        kind: one["peak"]["resident"] - one["one_model"]["resident"] for kind, one in watched_runs.items()
    }
    say(
        f"K = {arguments.sources}, batch {BATCH}, {arguments.threads} threads, {arguments.rounds} rounds of {arguments.steps}"
    )
    for kind in KINDS:
        by_round = [statistics.mean(one["seconds"]) for one in runs[kind]]
        say(
            f"{kind:10s} {mean[kind]:6.2f} s a step ({min(by_round):.2f}–{max(by_round):.2f} by round), "
            f"{extra[kind] / 1e6:6.0f} MB beyond one model ({extra[kind] / size:.2f} × it), "
            f"{pages[kind] / 1e6:.0f} MB with mapped files"
        )

    def ratios(first: str, second: str) -> str:
        pairs = [
            sum(a["seconds"]) / sum(b["seconds"]) for a, b in zip(runs[first], runs[second], strict=True)
        ]
        return f"{statistics.median(pairs):.2f} ({min(pairs):.2f}–{max(pairs):.2f})"

    say(f"step / plain              {ratios('langmerge', 'plain')}, at most 1.25")
    say(f"step / plain-math         {ratios('langmerge', 'plain-math')}")
    say(f"step / plain-all          {ratios('langmerge', 'plain-all')}")
    say(f"extra memory / model      {extra['langmerge'] / size:.2f}, at most 1.3")
    say(f"autograd / step, time     {ratios('autograd', 'langmerge')}, at least 2")
    used = max(extra["langmerge"], 1)
    say(f"autograd / step, memory   {extra['autograd'] / used:.1f}, at least 4")


def compare_gradients(arguments: argparse.Namespace) -> None:
    ours, other = (run_worker(arguments, kind, "--gradient") for kind in ("langmerge", "autograd"))
    order = [other["groups"].index(group) for group in ours["groups"]]
    a, b = np.array(ours["gradient"]), np.array(other["gradient"])[order]
    say(
        f"gradients, float32: largest difference {np.abs(a - b).max() / np.abs(b).max():.1e} of the largest, at most 1e-4"
    )


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the inputs: 7 GB")
    parser.add_argument("--tokenizer", type=Path, help="a model folder with the tokenizer that cuts the text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--sources", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--job", action="store_true", help="235 steps with 3 sources, from loading on")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--gradient", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(arguments)))
        return
    if arguments.tokenizer is None:
        parser.error(
            "--tokenizer: give a model folder, like the one that `langmerge base e5-small DIR` writes"
        )
    make_models(FAMILIES["xlmr"], arguments.work)
    write_utterances(arguments.work, arguments.tokenizer)
    if arguments.job:
        job(arguments)
        return
    compare_gradients(arguments)
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for at in range(arguments.rounds):
        for kind in (KINDS[at % 5 :] + KINDS[: at % 5])[:: 1 if at % 2 else -1]:
            runs[kind].append(run_worker(arguments, kind))
    report(arguments, runs, {kind: run_worker(arguments, kind, "--watch") for kind in KINDS})


if __name__ == "__main__":
    main()
