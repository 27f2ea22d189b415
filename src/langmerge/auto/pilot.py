"""The candidates of one question, made and scored as far as the decision asks for."""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from langmerge import __version__
from langmerge.adapting import Problem, adapt
from langmerge.auto.decision import Judged, Rung, halved, judged
from langmerge.auto.effect import read_effects
from langmerge.auto.evidence import Evidence
from langmerge.auto.features import TEXTS, PoolFeatures
from langmerge.auto.measured import measured
from langmerge.auto.options import OWN, Option, options
from langmerge.auto.question import Question
from langmerge.checkpoint import folder_signature
from langmerge.choosing import Wish, choose
from langmerge.engine import make_plan, merge, recipe_payload
from langmerge.errors import InputError
from langmerge.evaluate import PoolEvaluator, transfer_matrix
from langmerge.learned.settings import settings_of
from langmerge.measuring import head_statistics
from langmerge.models import load_classifier
from langmerge.progress import Progress, silent
from langmerge.recipe import Recipe
from langmerge.results import Logits, signature, soft_vote
from langmerge.scoring import ResidentClassifier
from langmerge.selection import FROM_MATRIX, Selection
from langmerge.similarities import PoolSelectors
from langmerge.tasks import Unlabelled, task_text
from langmerge.tasks.task import drawn_rows
from langmerge.training import refine_folder

LEARN: Mapping[str, Any] = {
    "groups": "block", "objective": "teacher", "steps": 60, "batch_size": 32, "lr": 5e-3, "check_every": 20, "anchor": 0.0,
    "held_out": 0.0, "freeze": ("head",),
}  # fmt: skip
"""As it was measured (docs/results.md): by block, to the vote of the sources."""

LOOKED_AT = TEXTS
"""Unlabelled texts on which a merge must still say what its sources say."""

ALLOWED = 0.15
"""By how much less than the best single expert a merge may agree with the sources' vote: beyond, it is broken."""


class Pilot:
    """What was tried.

    Args:
        question: what is to be decided.
        work: folder for what is made on the way.
        progress: told of every step.

    Raises:
        SelectionError: the sources cannot be chosen.
        InputError: a selector that looks at labels, and there are none.
        LocaleError, DataError: labels or text are asked for that the task does not have.
    """

    def __init__(self, question: Question, work: Path, progress: Progress = silent) -> None:
        self.question, self.progress = question, progress
        self.seconds: dict[str, float] = {}
        known = (
            measured(question.mode, without=question.target)
            if question.evidence is None
            else question.evidence
        )
        self.evidence: Mapping[str, Evidence] = known
        self._resident = ResidentClassifier(question.pool)
        self._refined: str | None = None
        self._evaluators: dict[int | None, PoolEvaluator] = {}
        if question.labels == "dev":
            question.task.load(question.target, "dev")
        elif question.selector == "measured":
            raise InputError("--by measured looks at labels of the target: leave it out, or say --labels dev")
        self._shares: dict[float | None, Selection] = {}
        self.sources = self._selection(self._most).sources
        if question.effects is not None:
            self.evidence = {**self.evidence, **self._predicted(question.effects)}
        if question.learned:
            self._check_learned()
        found = options(
            question.mode,
            statistics=question.statistics,
            refines=question.text is not None,
            learns=question.learned,
        )
        if len(self.sources) < 2:
            found = [one for one in found if one.choice is None and not one.learns]
        self.options: dict[str, Option] = {one.name: one for one in found}
        # What another question has left there is not taken for this one's.
        self.work = work / signature(self.inputs)

    def _check_learned(self) -> None:
        if self.question.text is None:
            raise InputError("coefficients are learned on text of the target: give --text")
        if len(self.sources) < 2:
            raise InputError("there is one source, and no coefficient to learn: leave out --learned")
        if self.question.labels == "none" and "learned" not in self.evidence:
            raise InputError(
                f"nothing is known of learned coefficients in {self.question.mode}, and without labels nothing will be: "
                "leave out --learned"
            )

    def _predicted(self, file: Path) -> dict[str, Evidence]:
        asked = self.question
        needs = "labels" if asked.labels == "dev" else "text"
        if not asked.statistics:
            raise InputError("--effects runs the experts on the target's text: leave out --no-statistics")

        def features() -> Mapping[str, float]:
            selectors = PoolSelectors(asked.pool, data=asked.data, own_evaluator=self.evaluator(asked.rows))
            own = PoolFeatures(selectors, experts=self.sources, progress=self.progress)
            return own.of(asked.target, self.sources, needs=needs)

        return read_effects(
            file, task=asked.task.name, mode=asked.mode, target=asked.target, needs=needs, features=features
        )

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What decides the decision."""
        asked = self.question
        return {
            "base": folder_signature(asked.pool.base_folder),
            "sources": {one: folder_signature(asked.pool.expert(one)) for one in self.sources},
            "task": asked.task.name, "revision": asked.task.revision, "target": asked.target, "mode": asked.mode,
            "labels": asked.labels, "rows": asked.rows if asked.labels == "dev" else 0, "selector": asked.selector,
            "statistics": asked.statistics, "text": asked.text.signature if asked.text is not None else None,
            "learned": asked.learned, "refinement": asked.refinement.model_dump() if asked.text is not None else None,
            "evidence": {name: asdict(one) for name, one in self.evidence.items()}, "langmerge": __version__,
        }  # fmt: skip

    @property
    def _most(self) -> float | None:
        """The share of the target's own expert where nothing else is said."""
        return OWN if self.question.mode == "IncTar" else None

    def _selection(self, share: float | None) -> Selection:
        """The sources, with a share of the target's own expert; None: it is one among equals, or there is none."""
        if share not in self._shares:
            self._shares[share] = self._chosen(share)
        return self._shares[share]

    def _chosen(self, share: float | None) -> Selection:
        asked, own = self.question, self.question.mode == "IncTar"
        others = len([one for one in asked.pool.locales if one != asked.target])
        size = min(asked.k, others + own)
        selectors = PoolSelectors(asked.pool, data=asked.data, progress=self.progress)
        wish = Wish(asked.target, asked.selector, size, own, own=share)
        if asked.selector == "measured":
            # On the rows that may be looked at; the pool's own matrix stays as it is.
            wish = replace(wish, by="manual", scores=self._measured())
        elif asked.selector in FROM_MATRIX and not (asked.pool.root / "transfer.dev.json").exists():
            transfer_matrix(self.evaluator(None), split="dev", data=asked.data, progress=self.progress)
        return choose(selectors, wish).selection

    def _measured(self) -> dict[str, float]:
        evaluator, found = self.evaluator(self.question.rows), {}
        with self.progress(f"experts on {self.question.target}", len(self.question.pool.locales)) as advance:
            for expert in self.question.pool.locales:
                found[expert] = float(evaluator.cell(expert, self.question.target, "dev").correct.mean())
                advance(1)
        return found

    def evaluator(self, rows: int | None) -> PoolEvaluator:
        """Of the pool, on so many dev rows."""
        if rows not in self._evaluators:
            self._evaluators[rows] = PoolEvaluator(
                self.question.pool, self.question.task, limits={"dev": rows}
            )
        return self._evaluators[rows]

    # Candidates

    @property
    def reference(self) -> str:
        """The single expert: the target's own, or the one that the selector puts first."""
        return self.sources[0]

    def of(self, name: str) -> tuple[str, ...]:
        """The sources of a candidate."""
        parent = self._refined if name == "refined" and self._refined else name
        return (self.reference,) if parent == "single" else self.sources

    @cached_property
    def _statistics(self) -> dict[str, Path]:
        asked = self.question
        return head_statistics(asked.pool, asked.task, self.sources, asked.target)

    def recipe(self, name: str) -> Recipe:
        """Of a merge."""
        choice, pool = self.options[name].choice, self.question.pool
        if name == "learned":
            return self._learned_recipe
        if choice is None:
            raise ValueError(f"{name} is no merge")
        return Recipe(
            base=pool.base_folder,
            sources={source: pool.expert(source) for source in self.sources},
            method=choice.method,
            parameters=choice.parameters,
            coefficients=self._selection(choice.own).coefficients,
            target=self.question.target,
            head=choice.head,
            statistics=self._statistics if choice.head == "regmean" else {},
        )

    def logits(self, name: str, split: str, rows: int | None = None) -> Logits:
        """A candidate's logits on the target's rows; kept where they can be."""
        evaluator, target = self.evaluator(rows), self.question.target
        if name == "single":
            return evaluator.cell(self.reference, target, split)
        if name == "refined":
            folder = self.work / "refined"
            return evaluator.logits(lambda: load_classifier(folder), folder_signature(folder), target, split)
        plan = make_plan(self.recipe(name))
        own = signature(recipe_payload(plan))
        kept = evaluator.kept(f"merges/{own}", target, split)
        return evaluator.logits(lambda: self._resident.filled(plan, own), own, target, split, kept=kept)

    def merges(self) -> list[Rung]:
        """Everything but the refined one: by halving on labelled rows, or by evidence alone."""
        names = [name for name, one in self.options.items() if not one.refines and not one.learns]
        asked = self.question
        if asked.labels == "none":
            # What nothing is known of will not be chosen, and is not made.
            found = [self._unlabelled(name) for name in names if name == names[0] or name in self.evidence]
            return [Rung(0, tuple(found))]
        whole = len(asked.task.load(asked.target, "dev").limited(asked.rows).ids)
        with self.progress(f"candidates for {asked.target}", 3 * len(names)) as advance:

            def right(name: str, rows: int) -> np.ndarray[Any, Any]:
                started = time.perf_counter()
                # All rows at once, and a part of them looked at: to make a merge again for each step would cost more.
                kept = self.logits(name, "dev", asked.rows)
                found = kept.correct[drawn_rows(kept.ids, rows, of=asked.target)]
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
                advance(1)
                return found

            return halved(names, self.evidence, right, whole)

    def _unlabelled(self, name: str) -> Judged:
        """By evidence; a merge that no longer says what its sources say is out."""
        found = judged(name, self.evidence.get(name), None, None)
        if name == "single" or not self.question.statistics:
            return found
        started = time.perf_counter()
        own, least = self._agreement(name), self._agreement("single") - ALLOWED
        self.seconds[name] = time.perf_counter() - started
        if own < least:
            return replace(
                found,
                out=f"agrees with the sources' vote on {own:.0%} of the texts, the single expert on {least + ALLOWED:.0%}",
            )
        return found

    @cached_property
    def _text(self) -> Unlabelled:
        return task_text(self.question.task, self.question.target, limit=LOOKED_AT)

    @cached_property
    def _vote(self) -> np.ndarray[Any, Any]:
        members = [self.evaluator(None).on_text(source, self._text) for source in self.sources]
        found: np.ndarray[Any, Any] = soft_vote(members).argmax(axis=1)
        return found

    def _agreement(self, name: str) -> float:
        evaluator = self.evaluator(None)
        if name == "single":
            return float((evaluator.on_text(self.reference, self._text).predictions == self._vote).mean())
        plan = make_plan(self.recipe(name))
        own = signature(recipe_payload(plan))
        found = evaluator.on_text_of(
            lambda: self._resident.filled(plan, own), own, f"merges/{own}", self._text
        )
        return float((found.predictions == self._vote).mean())

    # Those that need text

    @cached_property
    def _learned_recipe(self) -> Recipe:
        """Coefficients by block to the vote of the sources, from the weights of the other merges."""
        asked = self.question
        if asked.text is None:
            raise ValueError("there is no text to learn on")
        self.work.mkdir(parents=True, exist_ok=True)
        problem = Problem(
            self._selection(self._most).coefficients, asked.target, asked.text, settings_of("safe", **LEARN)
        )
        state = self.work / "learned.state"
        found = adapt(self.evaluator(None), problem, state=state, progress=self.progress).coefficients
        pool = asked.pool
        return Recipe(
            base=pool.base_folder,
            sources={source: pool.expert(source) for source in self.sources},
            method=found.provenance["method"],
            parameters=found.provenance["parameters"],
            coefficients=found,
            target=asked.target,
        )

    def learned(self) -> Judged:
        """Coefficients learned on the text."""
        started = time.perf_counter()
        _ = self._learned_recipe
        if self.question.labels == "none":
            found = self._unlabelled("learned")
        else:
            right, reference = (
                self.logits(one, "dev", self.question.rows).correct for one in ("learned", "single")
            )
            found = judged("learned", self.evidence.get("learned"), right, reference)
        self.seconds["learned"] = time.perf_counter() - started
        return found

    def refined(self, parent: str) -> Judged:
        """The best of the others, refined on the text."""
        asked = self.question
        if asked.text is None:
            raise ValueError("there is no text to refine on")
        started = time.perf_counter()
        self._refined = parent
        refine_folder(
            self.written(parent), asked.text, self.work / "refined", refinement=asked.refinement,
            progress=self.progress,
        )  # fmt: skip
        self.seconds["refined"] = time.perf_counter() - started
        if asked.labels == "none":
            return judged("refined", self.evidence.get("refined"), None, None)
        right, reference = (self.logits(one, "dev", asked.rows).correct for one in ("refined", "single"))
        return judged("refined", self.evidence.get("refined"), right, reference)

    def written(self, name: str) -> Path:
        """A candidate as a folder."""
        if name == "single":
            return self.question.pool.expert(self.reference)
        out = self.work / name
        if name != "refined" and not out.exists():
            merge(self.recipe(name), out, progress=self.progress)
        return out
