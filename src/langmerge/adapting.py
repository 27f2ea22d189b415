"""AdaMerging on a pool: sources, a start and text without labels in; a coefficients file out, and what it did."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from langmerge.coefficients import Coefficients
from langmerge.engine import Plan, make_plan, recipe_payload
from langmerge.engine.resident import ResidentMerge
from langmerge.errors import InputError, SelectionError
from langmerge.evaluate import PoolEvaluator
from langmerge.learned.adamerging import Learned, TextStream, learn
from langmerge.learned.deltas import Deltas, HeldDeltas, MappedDeltas
from langmerge.learned.groups import grouping
from langmerge.learned.objectives import Composed, Objective, terms_of
from langmerge.learned.settings import Settings
from langmerge.models import (
    best_device,
    cut_embeddings,
    encode,
    has_fast_bf16,
    load_classifier,
    predict_logits,
    renumbered,
    used_rows,
)
from langmerge.progress import Progress, silent
from langmerge.recipe import Recipe
from langmerge.results import Logits, signature, soft_vote
from langmerge.tasks import Unlabelled, paired_difference


@dataclass(frozen=True)
class Problem:
    """What is to be learned.

    Attributes:
        start: coefficients to begin with; names the sources.
        target: locale of the text.
        text: without labels.
        settings: how.
        teacher: experts whose mean probabilities are the soft labels; the sources by default (ExcTar), or the target's
            own expert where it is one of them (IncTar).
        extra: folders of sources that are not the pool's: a merged model, for coefficients on top of its delta.
    """

    start: Coefficients
    target: str
    text: Unlabelled
    settings: Settings
    teacher: tuple[str, ...] | None = None
    extra: Mapping[str, Path] = field(default_factory=dict)

    @property
    def teachers(self) -> tuple[str, ...]:
        """See `teacher`."""
        if self.teacher is not None:
            return self.teacher
        own = tuple(source for source in self.start.sources if source not in self.extra)
        return (self.target,) if self.target in own else own

    def initial(self) -> Coefficients:
        """The start: what was given, or the settings' number everywhere."""
        if self.settings.init is None:
            return self.start
        row = dict.fromkeys(self.start.sources, self.settings.init)
        return Coefficients(target=self.target, values={"model": row})


@dataclass(frozen=True)
class Adapted:
    """What came of it.

    Attributes:
        coefficients: for `langmerge merge`; its provenance says for which method, and how they were learned.
        learned: the run.
        beside: dev accuracies of the merge and of what it has to beat, where labels were to be looked at afterwards.
    """

    coefficients: Coefficients
    learned: Learned
    beside: list[dict[str, Any]] = field(default_factory=list)


class Resident:
    """A classifier in memory that is a merge of some sources, for texts that are known beforehand.

    Args:
        plan: of the merge.
        encoded: every text that it will read, in groups; only their word embeddings are held.
        device: where to; beyond the CPU, base and task vectors are held there too.
    """

    def __init__(
        self, plan: Plan, encoded: Sequence[Sequence[Sequence[int]]], *, device: torch.device | None = None
    ) -> None:
        device = best_device() if device is None else device
        self.model = load_classifier(plan.companions.donor, device="cpu")
        rows = used_rows(
            [row for group in encoded for row in group], pad_id=self.model.config.pad_token_id or 0
        )
        embeddings = cut_embeddings(self.model, rows)
        self.encoded = [renumbered(group, rows) for group in encoded]
        places = {
            name: one.detach().numpy()
            for name, one in self.model.state_dict(keep_vars=True).items()
            if one.is_floating_point()
        }
        self.merge = ResidentMerge(plan, places, rows={embeddings: rows})
        self.deltas: Deltas = MappedDeltas(self.merge)
        if device.type != "cpu":
            self.deltas = self._held(device)
        written = {tensor.name: tensor for tensor in plan.written}
        self.fixed = tuple(name for name in self.merge.norms if written[name].treatment == "mean")
        """Tensors whose mean depends on the coefficients, but not linearly."""

    def close(self) -> None:
        """End the threads."""
        self.merge.close()

    def _held(self, device: torch.device) -> HeldDeltas:
        """Task vectors on the device: the gradient's stretches are larger there than what reading them costs."""
        n = len(self.merge.sources)
        names = self.merge.moving
        zero = dict.fromkeys(names, [0.0] * n)
        self.merge.fill(zero)
        own = dict(self.model.named_parameters())
        base = {name: own[name].detach().clone() for name in names}
        taus: dict[str, torch.Tensor] = {}
        for at in range(n):
            unit = [float(place == at) for place in range(n)]
            self.merge.fill(dict.fromkeys(names, unit))
            for name in names:
                # One source at a time: never more than the vectors themselves and one model on the host.
                tau = taus.setdefault(name, torch.empty(n, *base[name].shape, device=device))
                tau[at] = (own[name].detach() - base[name]).to(device)
        self.model.to(device)
        own = dict(self.model.named_parameters())
        return HeldDeltas(own, {n: b.to(device) for n, b in base.items()}, taus, self.merge.sources)


def adapt(
    evaluator: PoolEvaluator,
    problem: Problem,
    *,
    objective: Objective | None = None,
    state: Path | None = None,
    beside: bool = False,
    progress: Progress = silent,
) -> Adapted:
    """Learn a merge's coefficients on text without labels.

    Args:
        evaluator: of the pool; its limit on dev rows holds for `beside`.
        problem: what to learn.
        objective: in place of the settings'; its name enters no signature, so a state file is refused with it.
        state: see `learn`.
        beside: afterwards, look at the target's dev labels, and compare.
        progress: told of what takes long.

    Raises:
        InputError: see `learn`, `grouping`, `Composed`.
        PlanError: the sources cannot be merged.
        TrainingError: a loss that is not finite, or a coefficient without gradient.
    """
    if objective is not None and state is not None:
        raise InputError("a custom objective cannot be told from another: leave out the state file")
    settings, start = problem.settings, problem.initial()
    plan = make_plan(_recipe(evaluator, problem, start))
    encoded = encode(evaluator.tokenizer, problem.text.texts)
    dev = evaluator.rows(problem.target, "dev") if beside else None
    with closing(Resident(plan, [encoded, dev.encoded if dev else []])) as resident:
        groups = grouping(
            resident.deltas.tensors,
            start,
            kind=settings.groups,
            sources=resident.deltas.sources,
            freeze=frozenset(settings.freeze),
            fixed=resident.fixed,
        )
        # What is wrong with the start is said before the teachers have read a line.
        settings.limits.free(torch.from_numpy(groups.initial()))
        soft, teachers = _soft(evaluator, problem, progress) if objective is None else (None, [])
        run = _run_signature(plan, problem, teachers)
        wanted = objective or Composed(
            terms_of(settings.objective),
            soft=soft,
            temperature=settings.temperature,
            confident=settings.confident,
        )
        stream = TextStream(resident.model, resident.encoded[0], wanted, problem.target)
        found = learn(resident.deltas, groups, [stream], settings, run=run, state=state, progress=progress)
        table = [] if dev is None else _beside(evaluator, problem, resident, groups, found)
    provenance = _provenance(evaluator, problem, found, run, teachers, custom=objective is not None)
    provenance |= {"sources": list(groups.sources), "groups": list(groups.groups)}
    return Adapted(
        groups.coefficients(found.values, target=problem.target, provenance=provenance), found, table
    )


def _run_signature(plan: Plan, problem: Problem, teachers: Sequence[str]) -> str:
    """Of what decides the result: a state of another run is refused by it."""
    return signature(
        {
            "merge": recipe_payload(plan),
            "text": problem.text.signature,
            "teachers": list(teachers),
            "settings": problem.settings.model_dump(mode="json"),
            "bf16": has_fast_bf16(best_device()),
        }
    )


def _recipe(evaluator: PoolEvaluator, problem: Problem, start: Coefficients) -> Recipe:
    method, parameters = problem.settings.method
    folders = {
        source: problem.extra[source] if source in problem.extra else evaluator.pool.expert(source)
        for source in start.sources
    }
    return Recipe(
        base=evaluator.pool.base_folder,
        sources=folders,
        method=method,
        parameters=parameters,
        coefficients=start,
        target=problem.target,
    )


def _provenance(
    evaluator: PoolEvaluator,
    problem: Problem,
    found: Learned,
    run: str,
    teachers: Sequence[str],
    *,
    custom: bool,
) -> dict[str, Any]:
    method, parameters = problem.settings.method
    text = problem.text
    return {
        "made_by": "adamerging",
        "method": method,
        "parameters": parameters,
        "signature": run,
        "step": found.step,
        "settings": problem.settings.model_dump(mode="json") | ({"objective": "custom"} if custom else {}),
        "text": {
            "origin": text.origin, "rows": len(text), "signature": text.signature,
            "overlap_with_test": text.overlap, "notes": list(text.notes),
        },
        "teachers": list(problem.teachers) if teachers else [],
        "extra": {name: str(folder.absolute()) for name, folder in problem.extra.items()},
        "task": evaluator.pool.task,
        "diagnostics": found.diagnostics,
        "history": [asdict(one) for one in found.history],
    }  # fmt: skip


def _soft(
    evaluator: PoolEvaluator, problem: Problem, progress: Progress
) -> tuple[np.ndarray[Any, Any] | None, list[str]]:
    """The teacher's probabilities, and the signatures of what gave them."""
    if "teacher" not in terms_of(problem.settings.objective):
        return None, []
    if not problem.teachers:
        raise SelectionError("the objective teacher needs an expert of the pool as teacher: name one")
    with progress("teachers", len(problem.teachers)) as advance:
        members = []
        for expert in problem.teachers:
            members.append(evaluator.on_text(expert, problem.text))
            advance(1)
    return np.exp(soft_vote(members)), [one.signature for one in members]


def _beside(
    evaluator: PoolEvaluator, problem: Problem, resident: Resident, groups: Any, found: Learned
) -> list[dict[str, Any]]:
    """Dev accuracy of the merge, of the start, of uniform weights, of the best single source and of the soft vote; with
    the paired difference of the merge to each.
    """
    rows = evaluator.rows(problem.target, "dev")
    labels = rows.examples.labels

    def merged(weights: Mapping[str, Sequence[float]]) -> np.ndarray[Any, Any]:
        resident.deltas.fill(weights)
        return np.asarray(predict_logits(resident.model, resident.encoded[1]).argmax(1) == labels)

    uniform = np.full_like(groups.initial(), 1 / len(groups.sources))
    members = {
        source: evaluator.cell(source, problem.target, "dev")
        for source in groups.sources
        if source not in problem.extra
    }
    right = {
        "start": merged(groups.weights(groups.initial())),
        "uniform": merged(groups.weights(uniform)),
        "learned": merged(groups.weights(found.values)),
    }
    others = {source: one.correct for source, one in members.items() if source != problem.target}
    if others:
        best = max(others, key=lambda source: (float(others[source].mean()), source))
        right[f"best source ({best})"] = others[best]
    if members:
        right["soft vote"] = soft_vote(list(members.values())).argmax(1) == labels
    if problem.target in members:
        right["self"] = members[problem.target].correct
    return [_line(name, one, right["learned"]) for name, one in right.items()]


def _line(name: str, own: np.ndarray[Any, Any], learned: np.ndarray[Any, Any]) -> dict[str, Any]:
    line: dict[str, Any] = {"name": name, "accuracy": float(own.mean()), "rows": len(own)}
    if name != "learned":
        found = paired_difference(learned, own)
        line |= {"difference": found.points, "low": found.low, "high": found.high, "p": found.p_value}
    return line


@dataclass(frozen=True)
class Decision:
    """The hybrid rule: learn only where the simple merge does not beat the best single source on dev.

    Attributes:
        method: of the simple merge.
        simple: its dev accuracy.
        best_source: chosen on the same dev rows.
        best: its dev accuracy.
        difference: simple − best, in points, with a 95 % interval.
    """

    method: str
    simple: float
    best_source: str
    best: float
    difference: tuple[float, float, float]

    @property
    def learns(self) -> bool:
        """Whether the simple merge is no better."""
        return self.simple <= self.best

    @property
    def reason(self) -> str:
        """One line."""
        points, low, high = self.difference
        found = f"{self.method} {100 * self.simple:.1f} % against {self.best_source} {100 * self.best:.1f} % on dev"
        verdict = "coefficients are learned" if self.learns else "the simple merge is kept"
        return f"{found} ({points:+.1f} [{low:+.1f}, {high:+.1f}] points): {verdict}"


def decide(simple: Logits, sources: Mapping[str, Logits], *, method: str, target: str) -> Decision:
    """Compare a simple merge with the best single source, as the published rule does: PUBLISHED.md, claim 8.

    Args:
        simple: the merge's dev logits.
        sources: each source's, of the same rows; the target's own expert is no source here.
        method: of the simple merge.
        target: locale.

    Raises:
        SelectionError: there is no source but the target's own expert.
    """
    others = {source: one for source, one in sources.items() if source != target}
    if not others:
        raise SelectionError("the hybrid rule needs a source that is not the target's own expert")
    best = max(others, key=lambda source: (float(others[source].correct.mean()), source))
    found = paired_difference(simple.correct, others[best].correct)
    return Decision(
        method,
        float(simple.correct.mean()),
        best,
        float(others[best].correct.mean()),
        (found.points, found.low, found.high),
    )
