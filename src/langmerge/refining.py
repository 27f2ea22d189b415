"""Refinement beside its controls: the same on the best single source and on the linear merge, all on the same rows."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from langmerge.checkpoint import read_json
from langmerge.engine.execute import merge
from langmerge.engine.planning import make_plan, recipe_of_receipt
from langmerge.engine.receipt import recipe_payload
from langmerge.errors import InputError
from langmerge.evaluate import Evaluator, PoolEvaluator
from langmerge.models import load_model, model_signature
from langmerge.pool import Pool
from langmerge.progress import Progress, silent
from langmerge.recipe import Recipe
from langmerge.results import Logits, signature
from langmerge.selection import TransferMatrix
from langmerge.tasks import (
    Interval,
    PairedDifference,
    Task,
    Unlabelled,
    accuracy,
    bootstrap_interval,
    paired_difference,
)
from langmerge.training import DevLabels, RefinedFolder, Refinement, refine_folder

MODEL = "the model"


@dataclass(frozen=True)
class Job:
    """What to refine, on what, how.

    Attributes:
        model: a classifier's folder, or an adapter's.
        text: unlabelled text of the target.
        out: the new folder; controls go into `<out>.controls`.
        refinement: settings, the same for the controls.
        teachers: see `refine_folder`; the controls teach themselves.
        base: of an adapter.
        task: whose dev (and test) rows of the target are the report; none without.
        dev_labels: choose epochs by the task's dev labels.
        splits: what is reported; choices never look at test.
        overwrite: replace `out`.
    """

    model: Path
    text: Unlabelled
    out: Path
    refinement: Refinement
    teachers: tuple[Path, ...] = ()
    base: Path | None = None
    task: Task | None = None
    dev_labels: bool = False
    splits: tuple[str, ...] = ("dev",)
    overwrite: bool = False

    @property
    def target(self) -> str:
        """The text's locale."""
        return self.text.locale

    def dev(self) -> DevLabels | None:
        """The dev rows that choose the epochs.

        Raises:
            InputError: they are asked for without a task.
        """
        if not self.dev_labels:
            return None
        if self.task is None:
            raise InputError("--dev-labels needs the labels of a task: name it with --task")
        return DevLabels(self.task.load(self.target, "dev"), self.task.labels)


@dataclass(frozen=True)
class Shift:
    """One model before and after refinement, on one split.

    Attributes:
        split: dev or test.
        rows: number of rows.
        before: accuracy in [0, 1].
        before_interval: bootstrap 95 % over rows.
        after: as before.
        after_interval: as before.
        gain: after − before, paired, in points.
        lead: the refined model over this one refined, paired, in points; None for the model itself.
    """

    split: str
    rows: int
    before: float
    before_interval: Interval
    after: float
    after_interval: Interval
    gain: PairedDifference
    lead: PairedDifference | None


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        name: the model, or which control.
        folder: before.
        refined: after.
        shifts: one per split.
    """

    name: str
    folder: Path
    refined: RefinedFolder
    shifts: tuple[Shift, ...]

    def payload(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "out": str(self.refined.out),
            "receipt": dict(self.refined.record),
            "kept": self.refined.kept,
            "seconds": round(self.refined.seconds, 2),
            "steps": self.refined.steps,
            "scores": [asdict(one) for one in self.shifts],
        }


def refine(job: Job, *, pool: Pool | None = None, progress: Progress = silent) -> list[Line]:
    """Refine a model, and its controls where a pool is given; what is there from an earlier run is kept.

    Args:
        job: what to do.
        pool: of the model's sources: asks for the controls.
        progress: told of everything.

    Returns:
        The model first, then the controls: the best single source on dev, and the linear merge of the model's sources.

    Raises:
        InputError: see `refine_folder`; with a pool also a model without a merge's receipt, a missing task, or a pool
            for another one.
    """
    dev = job.dev()
    # What is wrong with the controls is found before anything is written.
    recipe = _linear_recipe(job, pool) if pool is not None else None
    best = best_source(job, pool, recipe.sources, progress) if pool is not None and recipe is not None else ""
    made = [(MODEL, job.model, _refined(job, MODEL, job.model, job.out, dev, progress))]
    if pool is not None and recipe is not None:
        place = controls_folder(job.out)
        linear = _merged(recipe, place / "linear", progress)
        for name, folder, out in (
            (f"best source, {best}", pool.expert(best), place / f"{best}-refined"),
            ("linear merge", linear, place / "linear-refined"),
        ):
            made.append((name, folder, _refined(job, name, folder, out, dev, progress)))
    return _lines(job, made, progress)


def controls_folder(out: Path) -> Path:
    """Where the controls of an output are."""
    return out.with_name(f"{out.name}.controls")


def best_source(job: Job, pool: Pool, sources: Collection[str], progress: Progress = silent) -> str:
    """The pool's best expert for the target on dev; the target's own only where the model was merged with it.

    Dev accuracies are those of the pool's `transfer.dev.json` where it has the target; else they are measured.
    """
    experts = [expert for expert in pool.locales if expert != job.target or job.target in sources]
    file = pool.root / "transfer.dev.json"
    matrix = TransferMatrix.load(file) if file.is_file() else None
    if matrix is not None and job.target in matrix.targets:
        column = matrix.among(experts).column(job.target)
    else:
        evaluator = PoolEvaluator(pool, _task(job))
        column = {}
        with progress("measuring the sources on dev", len(experts)) as advance:
            for expert in experts:
                column[expert] = float(evaluator.cell(expert, job.target, "dev").correct.mean())
                advance(1)
    if not column:
        raise InputError(f"pool {pool.root} has no expert but {job.target}'s own: there is no control")
    return min(column, key=lambda expert: (-column[expert], expert))


def _refined(
    job: Job, name: str, folder: Path, out: Path, dev: DevLabels | None, progress: Progress
) -> RefinedFolder:
    is_model = name == MODEL
    return refine_folder(
        folder,
        job.text,
        out,
        refinement=job.refinement,
        teachers=job.teachers if is_model else (),
        dev=dev,
        base=job.base if is_model else None,
        # The controls' place is this program's own.
        overwrite=job.overwrite or not is_model,
        progress=lambda said, total: progress(f"{name}: {said}", total),
    )


def _task(job: Job) -> Task:
    if job.task is None:
        raise InputError("the controls are chosen and compared on a task's dev labels: name it with --task")
    return job.task


def _linear_recipe(job: Job, pool: Pool) -> Recipe:
    """The plain average of the sources that the model's receipt names; all faults of the controls are found here."""
    task = _task(job)
    if pool.task != task.name:
        raise InputError(f"pool {pool.root} is for {pool.task}, not {task.name}: its experts are no controls")
    if not (job.model / "langmerge.json").is_file():
        raise InputError(
            f"{job.model} has no langmerge.json: the control by linear merge needs a model made by langmerge merge"
        )
    recipe = recipe_of_receipt(read_json(job.model / "langmerge.json"))
    if not isinstance(recipe, Recipe):
        raise InputError(f"{job.model} was merged by a mergekit recipe: controls need one of langmerge's own")
    plain: dict[str, Any] = {"method": "linear", "parameters": {}, "coefficients": None, "statistics": {}}
    whole = {"embeddings": "merge", "head": "merge", "layers": None, "other_layers": "base"}
    linear = recipe.model_copy(update=plain | whole)
    make_plan(linear)
    return linear


def _merged(recipe: Recipe, out: Path, progress: Progress) -> Path:
    """The merge, made unless it is there."""
    wanted = signature(recipe_payload(make_plan(recipe)))
    receipt = out / "langmerge.json"
    if not receipt.is_file() or read_json(receipt).get("signature") != wanted:
        merge(recipe, out, overwrite=True, progress=progress)
    return out


def _lines(job: Job, made: Sequence[tuple[str, Path, RefinedFolder]], progress: Progress) -> list[Line]:
    """The same rows for all, before and after."""
    shifts: dict[str, list[Shift]] = {name: [] for name, _, _ in made}
    task = job.task
    if task is not None:
        with progress("measuring", 2 * len(made)) as advance:
            leader: dict[str, Logits] = {}
            for name, folder, refined in made:
                base = job.base if name == MODEL else None
                before = _logits(folder, task, job, base)
                advance(1)
                after = _logits(refined.out, task, job, base)
                advance(1)
                shifts[name] = [
                    _shift(split, before[split], after[split], leader.get(split)) for split in job.splits
                ]
                leader = leader or after
    return [Line(name, folder, refined, tuple(shifts[name])) for name, folder, refined in made]


def _logits(folder: Path, task: Task, job: Job, base: Path | None) -> dict[str, Logits]:
    model, tokenizer = load_model(folder, base=base)
    evaluator, own = Evaluator(task, tokenizer), model_signature(folder, base=base)
    return {split: evaluator.logits(lambda: model, own, job.target, split) for split in job.splits}


def _shift(split: str, before: Logits, after: Logits, leader: Logits | None) -> Shift:
    return Shift(
        split,
        len(after.labels),
        accuracy(before.labels, before.predictions),
        bootstrap_interval(before.labels, before.predictions),
        accuracy(after.labels, after.predictions),
        bootstrap_interval(after.labels, after.predictions),
        paired_difference(after.correct, before.correct),
        paired_difference(leader.correct, after.correct) if leader is not None else None,
    )
