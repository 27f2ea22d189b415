"""The re-test of learned coefficients in docs/results.md: every variant on every target and training seed, kept and paired.

    python scripts/learning_results.py run OUT POOL [POOL…] --targets sq-AL,sw-KE,cy-GB,vi-VN [--only GLOB]
    python scripts/learning_tables.py table OUT POOL [POOL…] --targets … [--against best]

A pool a training seed. Sources are chosen by dev accuracy (`--dev` rows), coefficients are learned on the target's train text
without labels, test (`--test` rows, drawn by id) is predicted once. What is done is kept below OUT and not done again, so
that a run can be stopped at any time, and several processes can share the work by different --only.
"""

import argparse
import fnmatch
import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from langmerge.adapting import Problem, adapt
from langmerge.checkpoint import folder_signature
from langmerge.coefficients import Coefficients
from langmerge.engine import make_plan, merge, recipe_payload
from langmerge.evaluate import PoolEvaluator
from langmerge.learned.settings import settings_of
from langmerge.measuring import Measurement, measure_fishers, measure_grams
from langmerge.models import encode, load_classifier, predict_logits
from langmerge.pool import Pool
from langmerge.recipe import Recipe
from langmerge.results import Logits, kept_logits, load_logits, signature, soft_vote
from langmerge.scoring import ResidentClassifier
from langmerge.tasks import label_shares, load_task, task_text
from langmerge.training import Refinement, Training, refine_folder, train_expert
from langmerge.training.alignment import aligning_bias, ordered_prior

SOURCES = [
    "en-US",
    "de-DE",
    "fr-FR",
    "es-ES",
    "it-IT",
    "ru-RU",
    "tr-TR",
    "az-AZ",
    "ar-SA",
    "hi-IN",
    "id-ID",
    "tl-PH",
    "th-TH",
    "zh-CN",
]
SPLITS = ("dev", "test")
TEXT_ROWS, REFINE_ROWS, STATISTICS_ROWS, FISHER_ROWS, TRAIN_ROWS = 2_048, 3_072, 256, 24, 2_500

LEARN: dict[str, Any] = {
    "steps": 60, "batch_size": 32, "lr": 5e-3, "check_every": 20, "anchor": 0.0, "held_out": 0.0, "freeze": ("head",),
}  # fmt: skip
LEARNED: dict[str, dict[str, Any]] = {
    "entropy/task": {"groups": "model", "objective": "entropy"},
    "entropy/block": {"groups": "block", "objective": "entropy"},
    "entropy/tensor": {"groups": "tensor", "objective": "entropy"},
    "entropy/block/head": {"groups": "block", "objective": "entropy", "freeze": ()},
    "entropy/tensor/++": {
        "groups": "tensor",
        "objective": "entropy",
        "density": 0.2,
        "init": 0.3,
        "high": 2.0,
    },
    "teacher/task": {"groups": "model", "objective": "teacher"},
    "teacher/block": {"groups": "block", "objective": "teacher"},
    "infomax/block": {"groups": "block", "objective": "infomax", "batch_size": 64},
    "safe": {"anchor": 0.1, "held_out": 0.1},
}
DIRECT: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "ties": ("ties", {"density": 0.2, "scope": "model"}),
    "wudi": ("wudi", {}),
}


@dataclass(frozen=True)
class Cell:
    """One target with one pool and one set of sources."""

    pool: Path
    target: str
    mode: str
    k: int

    @property
    def name(self) -> str:
        return f"{self.pool.name}/{self.target}/{self.mode}{self.k}"


class Bench:
    """One pool's evaluator and resident model."""

    def __init__(self, root: Path, out: Path, dev: int, test: int) -> None:
        self.pool, self.out = Pool.load(root), out
        self.evaluator = PoolEvaluator(
            self.pool, load_task(self.pool.task), limits={"dev": dev, "test": test}
        )
        self.resident = ResidentClassifier(self.pool)

    def ranked(self, target: str) -> list[str]:
        """Sources by dev accuracy on the target."""
        scores = {s: self.cell(s, target, "dev").correct.mean() for s in SOURCES if s != target}
        return sorted(scores, key=lambda s: (-scores[s], s))

    def cell(self, expert: str, target: str, split: str) -> Logits:
        return self.evaluator.cell(expert, target, split)

    def sources(self, cell: Cell) -> list[str]:
        """ExcTar: the best k others. IncTar: the target's expert and the best k − 1."""
        ranked = self.ranked(cell.target)
        return ranked[: cell.k] if cell.mode == "Exc" else [cell.target, *ranked[: cell.k - 1]]

    def start(self, cell: Cell) -> Coefficients:
        """Uniform; in IncTar nine tenths on the target's own expert, as a pilot found."""
        names = self.sources(cell)
        if cell.mode == "Exc":
            return Coefficients.uniform(names, target=cell.target)
        rest = 0.1 / (len(names) - 1)
        return Coefficients(
            target=cell.target, values={"model": {n: 0.9 if n == cell.target else rest for n in names}}
        )

    def recipe(
        self,
        cell: Cell,
        method: str,
        parameters: dict[str, Any],
        numbers: Coefficients,
        *,
        extra: Mapping[str, Path] | None = None,
        **more: Any,
    ) -> Recipe:
        also = extra or {}
        return Recipe(
            base=self.pool.base_folder,
            sources={s: also[s] if s in also else self.pool.expert(s) for s in numbers.sources},
            method=method,
            parameters=parameters,
            coefficients=numbers,
            target=cell.target,
            **more,
        )

    def merged(self, cell: Cell, recipe: Recipe, split: str) -> Logits:
        own = signature(recipe_payload(make_plan(recipe)))
        return self.evaluator.logits(lambda: self.filled(recipe), own, cell.target, split)

    def measured(self, cell: Cell, name: str) -> Recipe:
        """A merge by statistics, which are made once for each set of sources."""
        method, parameters, head = STATISTICS[name]
        start, kind = self.start(cell), "fisher" if method == "fisher" else "grams"
        folder = self.out / cell.name / kind
        rows = FISHER_ROWS if kind == "fisher" else STATISTICS_ROWS
        wanted = Measurement(start, cell.target, text="target", rows=rows)
        make = measure_fishers if kind == "fisher" else measure_grams
        files = dict(make(self.pool, self.evaluator.task, wanted, folder).files)
        return self.recipe(cell, method, parameters, start, head=head, statistics=files)

    def refined(self, cell: Cell, name: str) -> dict[str, Logits]:
        """Two rounds of self-distillation of another variant's model."""
        folder = self.out / cell.name / "models"
        teacher, prior = REFINED[name]
        model = self.pool.expert(self.reference(cell)) if teacher == "best" else self.written(cell, teacher)
        text = task_text(self.evaluator.task, cell.target, limit=REFINE_ROWS)
        settings = Refinement(rounds=2, prior=self.prior(cell) if prior else None, strength=0.9)
        out = refine_folder(model, text, folder / name.replace("/", "."), refinement=settings).out
        classifier, own = load_classifier(out), folder_signature(out)
        found = {s: self.evaluator.logits(lambda: classifier, own, cell.target, s) for s in SPLITS}
        shutil.rmtree(out)
        return found

    def continued(self, cell: Cell, name: str) -> dict[str, Logits]:
        """The target's labels, learned from another variant's model instead of from the base."""
        start, task = CONTINUED[name], self.evaluator.task
        folder = (
            self.pool.expert(self.ranked(cell.target)[0]) if start == "best" else self.written(cell, start)
        )
        model, asked = load_classifier(folder), Training(max_train=TRAIN_ROWS)
        train, dev = (task.load(cell.target, split) for split in ("train", "dev"))
        train, dev = train.limited(asked.max_train), dev.limited(asked.max_dev)
        texts = [encode(self.evaluator.tokenizer, one.texts) for one in (train, dev)]
        train_expert(
            model, texts[0], train.labels, texts[1], dev.labels, epochs=asked.epochs, lr=asked.lr,
            head_lr=asked.head_lr, batch_size=asked.batch_size, freeze_embeddings=asked.freeze_embeddings,
        )  # fmt: skip
        own = signature([cell.name, name, folder_signature(folder)])
        return {s: self.evaluator.logits(lambda: model, own, cell.target, s) for s in SPLITS}

    def reference(self, cell: Cell) -> str:
        """The model to beat: the best source; in IncTar the target's own expert."""
        return cell.target if cell.mode == "Inc" else self.ranked(cell.target)[0]

    def prior(self, cell: Cell) -> dict[str, float]:
        """Shares of the labels in the sources' training text."""
        others = [source for source in self.sources(cell) if source != cell.target]
        return label_shares(self.evaluator.task, others, target=cell.target)

    def aligned(self, cell: Cell, name: str, strength: float) -> dict[str, Logits]:
        """Another variant, whose head's bias is moved by its predictions on unlabelled text."""
        prior = ordered_prior(self.prior(cell), self.evaluator.task.labels)
        bias = aligning_bias(self.seen(cell, name).values, prior, strength)
        return {
            s: Logits("", one.ids, one.labels, kept_logits(one.values + bias))
            for s, one in logits_of(self, cell, name).items()
        }

    def seen(self, cell: Cell, name: str) -> Logits:
        """A variant's logits on unlabelled text."""
        text = task_text(self.evaluator.task, cell.target, limit=TEXT_ROWS)
        if name == "best":
            return self.evaluator.on_text(self.reference(cell), text)
        file = self.out / cell.name / f"{name}.text.safetensors"
        own = signature([cell.name, name, text.signature, *settings_of_variant(name)])
        if (kept := load_logits(file, own)) is not None:
            return kept
        values = predict_logits(
            self.filled(self.by_name(cell, name)), encode(self.evaluator.tokenizer, text.texts)
        )
        made = Logits(own, text.ids, np.full(len(text), -1, dtype=np.int64), kept_logits(values))
        made.save(file)
        return made

    def filled(self, recipe: Recipe) -> Any:
        """The resident model with a merge's weights."""
        plan = make_plan(recipe)
        return self.resident.filled(plan, signature(recipe_payload(plan)))

    def written(self, cell: Cell, name: str) -> Path:
        """A merge as a folder."""
        model = self.out / cell.name / "models" / name
        if not model.exists():
            merge(self.by_name(cell, name), model)
        return model

    def by_name(self, cell: Cell, name: str) -> Recipe:
        """A merge that is one recipe."""
        if name in DIRECT:
            return self.recipe(cell, *DIRECT[name], self.start(cell))
        return self.measured(cell, name) if name in STATISTICS else self.learned(cell, name)

    def learned(self, cell: Cell, name: str) -> Recipe:
        start, extra = self.start(cell), {}
        settings = settings_of("safe", **{**LEARN, **(LEARNED.get(name) or ON_TOP[name])})
        if name in ON_TOP:
            extra = {"merged": self.written(cell, name.partition("/")[0])}
            row = {"merged": 1.0, **dict.fromkeys(start.sources, 0.0)}
            start = Coefficients(target=cell.target, values={"model": row})
            settings = settings.model_copy(update={"low": -0.5, "high": 1.5})
        text = task_text(self.evaluator.task, cell.target, limit=TEXT_ROWS)
        problem = Problem(start, cell.target, text, settings, extra=extra)
        found = adapt(self.evaluator, problem).coefficients
        file = self.out / cell.name / f"{name.replace('/', '.')}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        found.save(file)
        return self.recipe(
            cell, found.provenance["method"], found.provenance["parameters"], found, extra=extra
        )


def prior_of(name: str) -> str:
    """How a variant's name ends, where it is another with a prior."""
    return next((suffix for suffix in PRIORS if name.endswith(suffix)), "")


def settings_of_variant(name: str) -> list[Any]:
    """What decides a variant's numbers besides models and text."""
    own = LEARNED.get(name) or ON_TOP.get(name)
    refined = [REFINED[name], REFINE_ROWS] if name in REFINED else None
    aligned = [name, PRIORS[prior_of(name)], TEXT_ROWS] if prior_of(name) and name not in REFINED else None
    if name in CONTINUED:
        return [CONTINUED[name], TRAIN_ROWS]
    return [own and {**LEARN, **own}, DIRECT.get(name), STATISTICS.get(name), refined, aligned]


def logits_of(bench: Bench, cell: Cell, name: str) -> dict[str, Logits]:
    """A variant's logits by split, kept."""
    files = {s: bench.out / cell.name / f"{name.replace('/', '.')}.{s}.safetensors" for s in SPLITS}
    own = {
        s: signature([cell.name, name, s, bench.evaluator.limits, *settings_of_variant(name)]) for s in SPLITS
    }
    found = {s: load_logits(files[s], own[s]) for s in SPLITS}
    if all(one is not None for one in found.values()):
        return {s: one for s, one in found.items() if one is not None}
    made = _computed(bench, cell, name)
    kept = {s: Logits(own[s], one.ids, one.labels, one.values) for s, one in made.items()}
    for split, one in kept.items():
        one.save(files[split])
    return kept


def _computed(bench: Bench, cell: Cell, name: str) -> dict[str, Logits]:
    if name == "best":
        return {s: bench.cell(bench.reference(cell), cell.target, s) for s in SPLITS}
    if name == "self":
        return {s: bench.cell(cell.target, cell.target, s) for s in SPLITS}
    if name == "vote":
        members = {s: [bench.cell(e, cell.target, s) for e in bench.sources(cell)] for s in SPLITS}
        return {
            s: Logits("", own[0].ids, own[0].labels, kept_logits(soft_vote(own)))
            for s, own in members.items()
        }
    if name in REFINED:
        return bench.refined(cell, name)
    if name in CONTINUED:
        return bench.continued(cell, name)
    if suffix := prior_of(name):
        return bench.aligned(cell, name.removesuffix(suffix), PRIORS[suffix])
    recipe = bench.by_name(cell, name)
    return {s: bench.merged(cell, recipe, s) for s in SPLITS}


def cells(given: argparse.Namespace) -> Iterator[Cell]:
    for pool, target, (mode, k) in itertools.product(
        given.pools, given.targets.split(","), [("Exc", 5), ("Inc", 5), ("Exc", 3)]
    ):
        yield Cell(pool, target, mode, k)


STATISTICS: dict[str, tuple[str, dict[str, Any], str]] = {
    "fisher": ("fisher", {}, "merge"),
    "regmean": ("regmean", {}, "regmean"),
    "wudi+head": ("wudi", {}, "regmean"),
    "gram0.15+head": ("gram", {"mix": 0.15}, "regmean"),
    "gram0.3+head": ("gram", {"mix": 0.3}, "regmean"),
}
"""Method, parameters, and what becomes of the head; Grams of the target's text through each source, Fishers of it too."""
ON_TOP = {
    "wudi+head/teacher": {"groups": "block", "objective": "teacher"},
    "wudi+head/infomax": {"groups": "block", "objective": "infomax", "batch_size": 64},
}
"""Coefficients per block of a wudi merge with its head by RegMean (from 1) and of its sources (from 0), in [-0.5, 1.5]."""
REFINED = {
    "refine/best": ("best", False),
    "refine/linear": ("linear", False),
    "refine/wudi+head": ("wudi+head", False),
    "refine/best+prior": ("best", True),
    "refine/wudi+head+prior": ("wudi+head", True),
}
"""Two rounds of self-distillation of these, without and with a prior for the labels."""
CONTINUED = {"self/best": "best", "self/linear": "linear", "self/wudi+head": "wudi+head"}
"""The target's own labels, learned from these of the other languages' models (ExcTar) instead of from the base."""
PRIORS = {"+prior": 0.9, "+prior/2": 0.5}
"""Variants whose head's bias is moved so that the mean prediction on unlabelled text nears the sources' label shares."""
VARIANTS = (
    *(f"{name}{suffix}" for name in ("best", "linear", "wudi", "wudi+head") for suffix in ("", *PRIORS)),
    "vote", "self", "ties", *(name for name in STATISTICS if name != "wudi+head"), *LEARNED, *ON_TOP, *REFINED, *CONTINUED,
)  # fmt: skip


def run(given: argparse.Namespace) -> None:
    benches = {pool: Bench(pool, given.out, given.dev, given.test) for pool in given.pools}
    for cell in cells(given):
        for name in VARIANTS:
            if not fnmatch.fnmatch(f"{cell.name}/{name}", given.only):
                continue
            found = logits_of(benches[cell.pool], cell, name)
            print(cell.name, name, *(f"{s} {100 * found[s].correct.mean():.2f}" for s in SPLITS), flush=True)


def arguments(commands: Sequence[str], about: str) -> argparse.Namespace:
    """What both scripts take."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("out", type=Path)
    parser.add_argument("pools", type=Path, nargs="+")
    parser.add_argument("--targets", default="sq-AL,sw-KE,cy-GB,vi-VN")
    parser.add_argument("--only", default="*", help="pool/target/mode and k/variant, with wildcards")
    parser.add_argument("--against", default="best")
    parser.add_argument("--dev", type=int, default=600)
    parser.add_argument("--test", type=int, default=1_000)
    return parser.parse_args()


if __name__ == "__main__":
    run(arguments(["run"], str(__doc__)))
